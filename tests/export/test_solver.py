"""Solver tables against diffusers' own loops: rows executed in numpy, and for a few by the solver graph's modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import SchedulerUnsupported
from engine.tablefile import late_begins
from export.probe import begin_at, prepared, replaced_noise, snapshot
from export.rows import UPDATE
from export.scheduler import make_scheduler, quiet
from export.schedulers import OFFERS, SAMPLERS
from export.solver import AT, COLUMNS, HISTORY, MAX_STEPS, OWN_STEPS, ROWS, Subject, table
from export.solver_graph import Solver, Start

SCALED_LINEAR = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "timestep_spacing": "leading", "clip_sample": False,
}  # fmt: skip
TRAILING = {**SCALED_LINEAR, "timestep_spacing": "trailing"}
ROOT = Path(__file__).resolve().parents[2]
CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": SCALED_LINEAR,
    "v_prediction": {**TRAILING, "prediction_type": "v_prediction"},
    "sample": {**SCALED_LINEAR, "prediction_type": "sample"},
    "zero_snr": {**TRAILING, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "emoji": json.loads((ROOT / "models" / "emoji" / "scheduler" / "scheduler_config.json").read_text()),
    "edm": {"_class_name": "EDMEulerScheduler"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
STEPS = (1, 2, 3, 4, 8, 20, 50, 100)
FEW = (1, 3, 8, 20)
SHAPE = (1, 4, 8, 8)
ROUNDING = 2.0**-24
"""Of float32. Euler adds and subtracts numbers as large as σ to get one of size 1, in diffusers' loop as in ours, so
where σ starts above 168 (emoji, zero SNR) the two differ by this much of σ."""
LOOSER = {"heun": 2e-5, "dpm2": 2e-5, "lcm": 5e-5, "tcd": 5e-5}


def tolerance(name: str, scheduler: Any) -> float:
    allowed = next((value for sampler, value in LOOSER.items() if name.startswith(sampler)), 1e-5)
    return max(allowed, 4 * ROUNDING * float(getattr(scheduler, "init_noise_sigma", 1.0)))


def model(sample: Tensor, timestep: Tensor) -> Tensor:
    """A fixed small network: bounded, not linear, different at each timestep, so that history matters."""
    weights = torch.linspace(-1, 1, 64, dtype=sample.dtype).reshape(8, 8)
    return torch.tanh(sample @ weights) + torch.sin(2 * sample + timestep.to(sample.dtype) / 100)


@cache
def noises(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(ROWS)]


@cache
def subject(name: str, config: str) -> Subject:
    """Raises SchedulerUnsupported where this scheduler is not for this model, or has no table of it."""
    made = Subject(name, make_scheduler(name, CONFIGS[config]))
    made.table(OWN_STEPS)
    return made


def options_of(name: str) -> list[dict[str, float]]:
    return [{"eta": eta} for eta in OFFERS[name].etas] or [{}]


def diffusers_loop(
    ready: Any,
    rows: np.ndarray,
    bank: list[Tensor],
    options: dict[str, float],
    begin: int | None = None,
    nudge: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """The loop as diffusers' pipelines write it. begin: img2img from this evaluation on.

    rows: say which draw of the bank an evaluation uses; a scheduler also draws where it takes none of the noise.
    nudge: what becomes of each of the model's outputs and each state.
    """
    first, j = begin or 0, 0
    begin_at(ready, first)
    x = bank[0] * getattr(ready, "init_noise_sigma", 1.0)
    if begin is not None:
        x = ready.add_noise(bank[-1], bank[0], ready.timesteps[first].reshape(1))
    with replaced_noise(ready, lambda: bank[int(rows[1 + j, AT["j"]])]):
        for j, t in enumerate(ready.timesteps[first:]):  # noqa: B007 - the draws read it
            scaled = ready.scale_model_input(x, t) if hasattr(ready, "scale_model_input") else x
            x = nudge(ready.step(nudge(model(scaled, t)), t, x, return_dict=False, **options)[0])
    return x


def row_loop(rows: np.ndarray, bank: list[Tensor]) -> np.ndarray:
    """The row's equation in float32; the image is the bank's last array."""
    image, history = bank[-1].numpy(), [np.zeros(SHAPE, np.float32)] * HISTORY
    at = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    x = at[0]["a"] * image + at[0]["c"] * bank[0].numpy()
    for before, row in pairwise(at):
        e = model(torch.from_numpy(before["s"] * x), torch.tensor(before["t"])).numpy()
        m = row["p"] * x + row["q"] * e
        x = row["a"] * x + row["d"] * e + row["b0"] * m + row["c"] * bank[int(row["j"])].numpy()
        x = x + sum(row[f"b{k + 1}"] * history[k] for k in range(HISTORY))
        history = [m, *history[:-1]]
    return x


def composed(rows: np.ndarray, warm: np.ndarray, first: int) -> np.ndarray:
    """A table from a late begin on, as runtime/tables.py composes it."""
    made = rows[first:].copy()
    made[0, : len(UPDATE)] = 0
    made[0, [AT["a"], AT["c"]]] = rows[first, [AT["u"], AT["v"]]]
    made[1 : 1 + len(warm), : len(UPDATE)] = warm
    noisy = 1 + np.flatnonzero(made[1:, AT["c"]])
    made[:, AT["j"]] = 0
    made[noisy, AT["j"]] = 1 + np.arange(len(noisy))
    return made


def relative(actual: Any, expected: Tensor) -> float:
    return float(np.linalg.norm(np.asarray(actual) - expected.numpy()) / np.linalg.norm(expected.numpy()))


def compare(
    ready: Any, actual: Any, rows: Any, bank: Any, options: Any, allowed: float, begin: int | None = None
) -> None:
    """A loop's end against diffusers'. Where diffusers' own fp32 is further from its own fp64 than `allowed` (LCM
    divides by a small α in each step, and the network carries the rounding on), twice that is allowed. One loop's
    roundings may cancel by luck, so loops in fp64 with their own roundings of that size count too; and as ours may add
    up by bad luck, there it is enough that the rows in fp64 keep to it.
    """
    error = relative(actual, diffusers_loop(snapshot(ready), rows, bank, options, begin))
    if error > allowed:
        double = [one.double() for one in bank]
        exact = diffusers_loop(snapshot(ready), rows, double, options, begin)
        own = [diffusers_loop(snapshot(ready), rows, bank, options, begin)]
        own += [diffusers_loop(snapshot(ready), rows, double, options, begin, nudges(seed)) for seed in range(3)]
        if (rounding := 2 * max(relative(one, exact) for one in own)) > allowed:
            allowed = rounding
            error = min(error, relative(row_loop(rows, double), exact))
    assert error <= allowed, f"{len(rows) - 1} evaluations from {begin}, {options}: {error:.1e} over {allowed:.1e}"


def nudges(seed: int) -> Callable[[Tensor], Tensor]:
    """Moves each number by a rounding of float32, up or down."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x * (1 + ROUNDING * torch.randn(SHAPE, generator=generator).sign().to(x.dtype))


def check(name: str, config: str, steps: tuple[int, ...]) -> None:
    with quiet():
        try:
            one = subject(name, config)
        except SchedulerUnsupported as error:
            pytest.skip(error.actual)
        most = 50 if name in ("lcm", "tcd") else MAX_STEPS
        for count in (n for n in steps if n <= most):
            for options in options_of(name):
                if (name.startswith("ddim"), config, options) == (True, "zero_snr", {"eta": 1.0}):
                    continue  # diffusers takes the root of a rounding error below zero; test_tables has the refusal
                ready, bank = prepared(one._scheduler, count), noises(count)
                try:
                    rows = one.table(count, options)
                except SchedulerUnsupported as error:
                    if diffusers_loop(ready, np.zeros((ROWS, len(COLUMNS))), bank, options).isfinite().all():
                        raise  # refused without a reason: the loop itself is well
                    pytest.skip(error.actual)
                compare(ready, row_loop(rows, bank), rows, bank, options, tolerance(name, ready))


def grid(names: Any, configs: Any) -> list[Any]:
    kinds = {"edm": "edm", "flow": "flow"}
    return [(n, c) for n in names for c in configs if OFFERS[n].kind == kinds.get(c, "diffusion")]


@pytest.mark.parametrize(("name", "config"), grid(SAMPLERS, ("epsilon", "edm", "flow")))
def test_replays_the_real_loop(name: str, config: str) -> None:
    check(name, config, FEW)


@pytest.mark.parametrize(
    ("name", "config"),
    grid(("euler", "ddim", "dpmpp_2m", "unipc", "heun"), ("v_prediction", "sample", "emoji", "zero_snr")),
)
def test_follows_what_the_model_predicts(name: str, config: str) -> None:
    check(name, config, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), grid(OFFERS, CONFIGS))
def test_replays_every_real_loop(name: str, config: str) -> None:
    check(name, config, STEPS)


LATE = ("euler", "euler_ancestral_trailing", "heun", "dpm2_ancestral", "lms_karras", "ddim", "pndm", "deis",
        "unipc_karras", "dpmpp_2m", "dpmpp_3m_sde_karras", "dpmpp_2s", "dpmpp_2s_sde", "lcm", "tcd")  # fmt: skip


def check_late(name: str, steps: tuple[int, ...]) -> None:
    with quiet():
        try:
            one = subject(name, "epsilon")
        except SchedulerUnsupported as error:
            pytest.skip(error.actual)
        options = options_of(name)[-1]
        warm = one.warm_count(1, 50, options)
        for count in steps:
            rows, late = one.table(count, options), one.late_rows([count], warm, options)[0]
            at = 0
            for first, own in late_begins(count, len(rows) - 1, one.order, warm):
                ready = prepared(one._scheduler, count)
                mine, bank = composed(rows, late[at : at + own], first), noises(count)
                compare(ready, row_loop(mine, bank), mine, bank, options, tolerance(name, ready), first)
                at += own
            assert at == len(late)


@pytest.mark.parametrize("name", LATE)
def test_begins_where_the_real_loop_would(name: str) -> None:
    check_late(name, (2, 3, 8, 17))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, offer in OFFERS.items() if offer.kind == "diffusion"])
def test_begins_everywhere(name: str) -> None:
    check_late(name, (2, 3, 4, 5, 8, 20, 50))


@pytest.mark.parametrize("name", ["euler_ancestral", "pndm", "unipc", "heun"])
def test_the_graphs_modules_execute_the_rows(name: str) -> None:
    rows, bank = subject(name, "epsilon").table(8), noises(8)
    padded = torch.zeros(1, ROWS, len(COLUMNS))
    padded[0, : len(rows)] = torch.from_numpy(rows)
    noise, ids = torch.stack(bank, 1), torch.zeros(1, dtype=torch.int32)
    image, mask = torch.full(SHAPE, torch.nan), torch.ones(1, 1, *SHAPE[2:])  # of text-to-image, which reads neither
    start, solver = Start(torch.float32), Solver(torch.float32)
    latents, history, row, sample, timestep = start(padded, noise, image, ids)
    for _ in range(len(rows) - 1):
        e = model(sample, timestep)
        latents, history, row, sample, timestep = solver(
            e, latents, history, row, padded, noise, torch.ones(1), ids, ids, ids, image, mask
        )
    assert relative(latents, torch.from_numpy(row_loop(rows, bank))) <= 1e-6


def test_a_guided_sample_mixes_its_two_rows_by_index() -> None:
    solver = Solver(torch.float32)
    rows = torch.zeros(2, ROWS, len(COLUMNS))
    rows[:, :, COLUMNS.index("q")] = rows[:, :, COLUMNS.index("b0")] = rows[:, :, COLUMNS.index("s")] = 1.0
    pred = torch.stack([torch.full((4, 8, 8), value) for value in (3.0, 1.0, float("nan"))])
    state = [torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 8, 8), torch.zeros(2, dtype=torch.int32)]
    index = [torch.tensor(v, dtype=torch.int32) for v in ([0, 2], [1, 2], [0, 0, 1])]
    image, mask = torch.zeros(2, 4, 8, 8), torch.ones(2, 1, 8, 8)
    noise, scales = torch.zeros(2, 1, 4, 8, 8), torch.tensor([5.0, 1.0])
    latents, *_, sample, _ = solver(pred, *state, rows, noise, scales, *index, image, mask)
    assert torch.equal(latents[0], torch.full((4, 8, 8), 1 + 5.0 * (3 - 1)))
    assert sample.shape == (3, 4, 8, 8)
    assert torch.isnan(latents[1]).all()
    assert torch.isfinite(sample[:2]).all()  # a neighbour's NaN stays with the neighbour


@pytest.mark.parametrize("name", ["heun", "euler_ancestral", "pndm", "ddim"])
def test_the_longest_table_fits_its_padding_and_its_noise(name: str) -> None:
    rows = table(name, make_scheduler(name, SCALED_LINEAR), MAX_STEPS)
    assert len(rows) == {"heun": 200, "pndm": 102}.get(name, 101)
    assert np.isfinite(rows).all()
    assert ("ancestral" in name) == (rows[:, AT["j"]].max() > 0)
    assert rows[0, AT["c"]] > 0
    assert rows[-1, [AT["u"], AT["v"]]].tolist() == [1, 0]


@pytest.mark.parametrize("setting", ["thresholding", "clip_sample"])
def test_refuses_what_is_not_linear(setting: str) -> None:
    with pytest.raises(SchedulerUnsupported, match=f"{setting}=True"):
        make_scheduler("ddim", {**SCALED_LINEAR, setting: True})


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("edm_euler", "epsilon", "of kind 'edm'"),
        ("flow_euler", "epsilon", "of kind 'flow'"),
        ("euler", "flow", "this model's scheduler_config is of kind 'flow'"),
        ("heun", "zero_snr", "does not know the model's rescale_betas_zero_snr=True"),
    ],
)
def test_refuses_what_the_model_cannot_drive(name: str, config: str, reason: str) -> None:
    with pytest.raises(SchedulerUnsupported, match=reason):
        make_scheduler(name, CONFIGS[config])


def test_refuses_a_step_that_does_not_fit_the_row() -> None:
    class Squares:
        init_noise_sigma = 1.0

        def set_timesteps(self, steps: int) -> None:
            self.timesteps = torch.arange(steps, 0, -1)

        def step(self, output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (sample + output + 0.1 * torch.cumsum(sample, -1),)

    with pytest.raises(SchedulerUnsupported, match="does not fit the row"):
        table("euler", Squares(), 3)
