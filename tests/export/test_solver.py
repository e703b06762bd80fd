"""Solver tables and the solver graph's modules against diffusers' own loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import SchedulerUnsupported
from export.solver import COLUMNS, MAX_STEPS, ROWS, SCHEDULERS, make_scheduler, replaced_noise, table
from export.solver_graph import Solver, Start

SCALED_LINEAR = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": SCALED_LINEAR,
    "v_prediction": {**SCALED_LINEAR, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
}
ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "models" / "emoji" / "scheduler" / "scheduler_config.json"
if EMOJI.exists():
    CONFIGS["emoji"] = json.loads(EMOJI.read_text())
STEPS = (1, 2, 3, 4, 8, 20, 50, 100)
SHAPE = (1, 4, 8, 8)
TOLERANCE = 1e-5
ROUNDING = 2.0**-24
"""Of float32. Euler adds and subtracts numbers as large as σ to get one of size 1, in diffusers' loop as in ours, so
where σ starts above 168 (emoji: see bank_scale) the two differ by this much of σ."""


def model(sample: Tensor, timestep: Tensor) -> Tensor:
    """A fixed small network: bounded, not linear, different at each timestep, so that history matters."""
    weights = torch.linspace(-1, 1, 64).reshape(8, 8)
    return torch.tanh(sample @ weights) + torch.sin(2 * sample + timestep.float() / 100)


def noises(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(ROWS)]


def bank_scale(name: str, config: str) -> float:
    """The σ that a scheduler starts its loop at; 1 for those that keep the latents at variance 1."""
    return float(make_scheduler(name, CONFIGS[config]).init_noise_sigma)


def diffusers_loop(scheduler: Any, steps: int, bank: list[Tensor]) -> Tensor:
    """The loop as diffusers' pipelines write it, noise taken from the bank."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    drawn = iter(bank[1:])
    x = bank[0] * scheduler.init_noise_sigma
    with replaced_noise(scheduler, lambda: next(drawn)):
        for t in scheduler.timesteps:
            e = model(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(e, t, x, return_dict=False)[0]
    return x


def graph_loop(rows: np.ndarray, bank: list[Tensor], guidance: float | None = None) -> Tensor:
    """The same loop through the modules that become start.onnx and solver.onnx, one sample."""
    padded = torch.zeros(1, ROWS, len(COLUMNS))
    padded[0, : len(rows)] = torch.from_numpy(rows)
    noise = torch.stack(bank, 1)
    ids = torch.zeros(1, dtype=torch.int32)
    start, solver = Start(torch.float32), Solver(torch.float32)
    latents, history, row, sample, timestep = start(padded, noise, ids)
    for _ in range(len(rows) - 1):
        e = model(sample, timestep)
        latents, history, row, sample, timestep = solver(
            e, latents, history, row, padded, noise, torch.ones(1), ids, ids, ids
        )
    return latents


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_replays_the_real_loop(name: str, config: str) -> None:
    for steps in STEPS:
        bank = noises(steps)
        expected = diffusers_loop(make_scheduler(name, CONFIGS[config]), steps, bank)
        actual = graph_loop(table(name, make_scheduler(name, CONFIGS[config]), steps), bank)
        error = float((actual - expected).norm() / expected.norm())
        assert error <= max(TOLERANCE, ROUNDING * bank_scale(name, config)), (
            f"{name}, {config}, {steps} steps: {error:.1e}"
        )


def test_a_guided_sample_mixes_its_two_rows_by_index() -> None:
    solver = Solver(torch.float32)
    rows = torch.zeros(2, ROWS, len(COLUMNS))
    rows[:, :, COLUMNS.index("q")] = rows[:, :, COLUMNS.index("b0")] = rows[:, :, COLUMNS.index("s")] = 1.0
    pred = torch.stack([torch.full((4, 8, 8), value) for value in (3.0, 1.0, float("nan"))])
    state = [torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 8, 8), torch.zeros(2, dtype=torch.int32)]
    index = [torch.tensor(v, dtype=torch.int32) for v in ([0, 2], [1, 2], [0, 0, 1])]
    latents, *_, sample, _ = solver(pred, *state, rows, torch.zeros(2, 1, 4, 8, 8), torch.tensor([5.0, 1.0]), *index)
    assert torch.equal(latents[0], torch.full((4, 8, 8), 1 + 5.0 * (3 - 1)))
    assert sample.shape == (3, 4, 8, 8)
    assert torch.isnan(latents[1]).all()
    assert torch.isfinite(sample[:2]).all()  # a neighbour's NaN stays with the neighbour


def test_every_table_fits_its_padding_and_its_noise() -> None:
    for name in SCHEDULERS:
        rows = table(name, make_scheduler(name, SCALED_LINEAR), MAX_STEPS)
        draws = rows[:, COLUMNS.index("j")]
        assert len(rows) <= ROWS
        assert np.isfinite(rows).all()
        assert ("ancestral" in name) == (draws.max() > 0)
        assert rows[0, COLUMNS.index("c")] > 0


@pytest.mark.parametrize("setting", ["thresholding", "clip_sample"])
def test_refuses_what_is_not_linear(setting: str) -> None:
    with pytest.raises(SchedulerUnsupported, match=f"{setting}=True"):
        make_scheduler("ddim", {**SCALED_LINEAR, setting: True})


def test_refuses_a_step_that_does_not_fit_the_row() -> None:
    class Squares:
        init_noise_sigma = 1.0

        def set_timesteps(self, steps: int) -> None:
            self.timesteps = torch.arange(steps, 0, -1)

        def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return sample

        def step(self, output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (sample + output + 0.1 * torch.cumsum(sample, -1),)

    with pytest.raises(SchedulerUnsupported, match="does not fit the row"):
        table("euler", Squares(), 3)
