"""Tables of flow matching: to the bit the sigmas and timesteps of diffusers' ZImagePipeline, set as it sets them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline
from diffusers.pipelines.z_image import pipeline_z_image

from engine.errors import SchedulerUnsupported
from engine.tablefile import TableFile
from export.scheduler import make_scheduler, quiet
from export.solver import AT, COLUMNS, Subject, own_scheduler
from export.tables import write_tables
from runtime.strength import begin_of

TURBO: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": False,
}  # fmt: skip
KNOWN = [1, 0.9545454, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3, 0]
"""3x / (1 + 2x), a shift of 3, of x = 8/8, 7/8 … 1/8; and the end."""


def pipelines_own(config: dict[str, Any], steps: int) -> Any:
    """A scheduler after the lines of ZImagePipeline.__call__ that set it, at 1024 × 1024 px."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    pipeline_z_image.retrieve_timesteps(
        scheduler, steps, "cpu", sigmas=pipeline_z_image.get_default_z_image_sigmas(steps),
        mu=pipeline_z_image.calculate_shift(4096),
    )  # fmt: skip
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize("shift", [3.0, 6.0, 1.0])
def test_every_step_count_has_the_pipelines_sigmas_to_the_bit(shift: float) -> None:
    config = {**TURBO, "shift": shift}
    subject = Subject("flow_euler", make_scheduler("flow_euler", config))
    for steps in range(1, 51):
        rows, real = subject.table(steps), pipelines_own(config, steps)
        sigmas, times = real.sigmas.numpy(), real.timesteps.numpy()
        assert len(rows) == steps + 1
        assert rows[:, AT["v"]].tolist() == sigmas.tolist()  # what an image is noised to
        assert rows[:-1, AT["t"]].tolist() == times.tolist()
        assert (rows[1:, AT["b0"]] * rows[1:, AT["q"]]).tolist() == np.diff(sigmas).tolist()
        assert (rows[1:, [AT["a"]]] == 1).all()
        assert (rows[:, AT["s"]] == 1).all()
        assert rows[0, AT["c"]] == 1
        assert not rows[1:, [AT[name] for name in ("p", "d", "b1", "b2", "b3", "b4", "c", "j")]].any()


def test_a_loop_over_the_table_is_the_real_schedulers_own_to_the_bit() -> None:
    subject = Subject("flow_euler", make_scheduler("flow_euler", TURBO))
    bank = torch.randn(10, 1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    rows, real = subject.table(9), pipelines_own(TURBO, 9)
    latents, replayed = bank[0], bank[0].numpy()
    for k, t in enumerate(real.timesteps):
        latents = real.step(bank[1 + k], t, latents, return_dict=False)[0]
        replayed = rows[1 + k, AT["a"]] * replayed + rows[1 + k, AT["b0"]] * bank[1 + k].numpy()
    assert np.array_equal(replayed, latents.numpy())


def test_eight_steps_are_those_of_one_shift_by_hand() -> None:
    rows = Subject("flow_euler", make_scheduler("flow_euler", TURBO)).table(8)
    assert rows[:, AT["v"]].tolist() == pytest.approx(KNOWN, abs=1e-6)


def test_the_number_of_steps_alone_would_shift_twice() -> None:
    """Why the sigmas are given: what set_timesteps(8) makes by itself is another loop."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(TURBO)
    scheduler.set_timesteps(8)
    assert np.abs(scheduler.sigmas.numpy() - KNOWN).max() > 0.02


def test_a_shift_by_the_pictures_size_has_no_table() -> None:
    with quiet(), pytest.raises(SchedulerUnsupported, match="use_dynamic_shifting=True: its steps depend"):
        make_scheduler("flow_euler", {**TURBO, "use_dynamic_shifting": True})


def test_a_bundles_tables_hold_them_for_1_to_50_steps(tmp_path: Path) -> None:
    """As they are read back from the file, and no scheduler of betas beside them."""
    assert own_scheduler(TURBO) == "flow_euler"
    told = write_tables(TURBO, "flow_euler", tmp_path / "tables.npz", ["flow_euler"], cache=tmp_path / "cache")
    entry = told.schedulers["flow_euler"]
    assert told.part_counts
    assert (entry.min_steps, entry.max_steps, entry.order, entry.warm) == (1, 100, 1, 0)
    stored = TableFile((tmp_path / "tables.npz").read_bytes()).table("flow_euler", len(COLUMNS))
    for steps in range(1, 51):
        rows, real = stored.at(steps - 1), pipelines_own(TURBO, steps)
        assert rows[:, AT["v"]].tolist() == real.sigmas.tolist()
        assert rows[:-1, AT["t"]].tolist() == real.timesteps.tolist()
    with pytest.raises(SchedulerUnsupported, match="of kind 'flow'"):
        write_tables(TURBO, "flow_euler", tmp_path / "tables.npz", ["euler"], cache=tmp_path / "cache")


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 10, 50])
def test_a_loop_from_an_image_begins_where_the_pipeline_begins_it(steps: int) -> None:
    """Of flows a strength of 0.8 makes 7 of 8 steps; of Stable Diffusion 6."""
    pipeline = SimpleNamespace(scheduler=pipelines_own(TURBO, steps))
    for strength in (0.001, 0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.99, 1.0):
        times, kept = ZImageImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")
        begin = begin_of(steps, strength, part_counts=True)
        assert begin == pipeline.scheduler.begin_index == steps - kept == steps - len(times)


def test_an_image_is_noised_as_the_pipeline_does_it() -> None:
    rows = Subject("flow_euler", make_scheduler("flow_euler", TURBO)).table(8)
    assert rows[:, AT["u"]].tolist() == (1 - rows[:, AT["v"]]).tolist()
