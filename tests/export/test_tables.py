"""All tables of one model: names, etas, the model's own scheduler, and processes that die."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import OptionInvalid, SchedulerUnsupported
from engine.tablefile import TableFile
from export import table_cache, table_workers
from export import tabled as tabled_module
from export.scheduler import OWN, own_name
from export.table_workers import probe_side_by_side
from export.tabled import tabled
from export.tables import our_name, write_tables
from tests.export.test_solver import CONFIGS

EMOJI = CONFIGS["emoji"]
NAMES = ("euler", "ddpm", "lcm")


@pytest.mark.parametrize("asked", ["dpmpp_2m_karras", "DPM++ 2M Karras", "dpm++ 2m karras"])
def test_a_name_of_others_is_ours(asked: str) -> None:
    assert our_name(asked) == "dpmpp_2m_karras"


def test_a_name_of_nobody_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="'eulr'"):
        our_name("eulr")


def test_writes_aliases_and_etas(tmp_path: Path) -> None:
    made = write_tables(EMOJI, "lcm", tmp_path / "t.npz", ["TCD", "LCM"], [0.5], tmp_path / "cache")
    assert [*made.schedulers] == ["tcd", "lcm"]
    assert made.schedulers["tcd"].etas == (0.0, 0.3, 1.0, 0.5)
    assert made.schedulers["lcm"].etas == ()
    file = TableFile((tmp_path / "t.npz").read_bytes())
    assert all(key in file for key in ("tcd", "tcd@0.3", "tcd@1", "tcd@0.5", "lcm"))
    none, half = (file.table(key, len(made.columns)).at(7) for key in ("tcd", "tcd@0.5"))
    assert not np.array_equal(none, half)


def test_an_eta_that_diffusers_cannot_run_is_left_out(tmp_path: Path) -> None:
    found = tabled("ddim", CONFIGS["zero_snr"], [], tmp_path)
    assert 1.0 not in found.etas
    assert found.etas[0] == 0.0
    assert (found.min_steps, found.max_steps) == (1, 100)


def test_a_scheduler_that_is_none_of_ours_is_own(tmp_path: Path) -> None:
    assert own_name({**EMOJI, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}) == OWN
    config = {**EMOJI, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}
    made = write_tables(config, OWN, tmp_path / "t.npz", ["lcm"], cache=tmp_path / "cache")
    assert made.schedulers[OWN].class_name == "DPMSolverMultistepScheduler"
    assert OWN in TableFile((tmp_path / "t.npz").read_bytes())


def test_one_asked_for_by_name_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SchedulerUnsupported, match="flow_euler"):
        write_tables(EMOJI, "lcm", tmp_path / "t.npz", ["flow_euler"], cache=tmp_path / "cache")


def test_two_names_of_one_scheduler_are_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    probed = tabled_module.probed
    monkeypatch.setattr(tabled_module, "probed", lambda name, *rest: asked.append(name) or probed(name, *rest))
    write_tables(EMOJI, "euler", tmp_path / "t.npz", ["euler", "euler_trailing"], cache=tmp_path / "cache")
    assert asked == ["euler"]


def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_workers, "WORTH_IT", 2)
    monkeypatch.setattr(table_workers.os, "cpu_count", lambda: 2)


@pytest.mark.slow
def test_a_process_leaves_its_share_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side_by_side(monkeypatch)
    probe_side_by_side(EMOJI, NAMES, [], tmp_path)
    assert len(list(tmp_path.iterdir())) == len(NAMES)
    assert all(table_cache.load(path) is not None for path in tmp_path.iterdir())


@pytest.mark.parametrize("program", ["false", "missing"])
def test_a_process_that_dies_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    side_by_side(monkeypatch)
    started: Any = table_workers._start
    bad = tmp_path / "dies"
    bad.write_text("#!/bin/sh\nexit 1\n")
    bad.chmod(0o755)

    def dies(job: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(bad if program == "false" else tmp_path / "none"))
            return started(job)

    monkeypatch.setattr(table_workers, "_start", dies)
    made = write_tables(EMOJI, "lcm", tmp_path / "t.npz", NAMES, cache=tmp_path / "cache")
    assert [*made.schedulers] == [*NAMES]
