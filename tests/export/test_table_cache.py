"""Tables kept on disk: found again, never stale, and a damaged entry or a dead process costs time alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import OptionInvalid, SchedulerUnsupported
from engine.tablefile import TableFile
from export import table_cache, table_workers, tables
from export.table_cache import Tabled

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True, "clip_sample": False,
}  # fmt: skip


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_STEPS", 12)


def same(one: Tabled, other: Tabled) -> bool:
    facts = [(t.min_steps, t.max_steps, t.order, t.warm, len(t.tables), len(t.late)) for t in (one, other)]
    arrays = [[array for some in (*t.tables, *t.late) for array in some] for t in (one, other)]
    return facts[0] == facts[1] and all(map(np.array_equal, *arrays))


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim", "heun"])
def test_what_was_kept_is_what_was_found(tmp_path: Path, few_steps: None, monkeypatch: Any, name: str) -> None:
    found = tables.tabled(name, CONFIG, (), tmp_path)
    monkeypatch.setattr(tables, "probed", lambda *_: pytest.fail("probed again"))
    assert same(found, tables.tabled(name, CONFIG, (), tmp_path))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_entry_is_none(tmp_path: Path, few_steps: None) -> None:
    found = tables.tabled("dpmpp_2m", CONFIG, (), tmp_path)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    for damaged in (b"", raw[:-1], raw[:100], bytes([raw[0] ^ 1]) + raw[1:], raw[:-9] + b"x" + raw[-8:], b"\n" + raw):
        path.write_bytes(damaged)
        assert table_cache.load(path) is None
        assert same(found, tables.tabled("dpmpp_2m", CONFIG, (), tmp_path))
        assert path.read_bytes() == raw
    path.unlink()
    path.mkdir()
    assert same(found, tables.tabled("dpmpp_2m", CONFIG, (), tmp_path))  # cannot be kept, and is found all the same
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_entry_depends_on_all_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(class_name: str = "A", settings: Any = None, config: Any = None, etas: Any = ()) -> str:
        return table_cache.entry_name(class_name, settings or {}, config or CONFIG, etas)

    others = [name("B"), name(settings={"x": 1}), name(config={**CONFIG, "beta_end": 0.03}), name(etas=(0.0, 1.0))]
    monkeypatch.setattr(table_cache, "_makers", lambda: ["another version"])
    others.append(name())
    monkeypatch.undo()
    assert len({name(), *others}) == 6
    assert name() == name(config={**CONFIG, "_diffusers_version": "0.1"})


def test_processes_side_by_side_leave_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("euler", "ddim")
    job = {"config": CONFIG, "names": names[:1], "etas": [], "cache": str(tmp_path)}
    started = table_workers._start(job)
    assert started.wait(timeout=120) == 0
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(tables, "probed", lambda *_: pytest.fail("probed again"))
    assert tables.tabled("euler", CONFIG, (), tmp_path).max_steps == 100
    assert path.exists()


def test_a_process_that_dies_costs_time_alone(tmp_path: Path, few_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    died = [sys.executable, "-c", "import os; os._exit(9)"]
    monkeypatch.setattr(table_workers, "_start", lambda _: subprocess.Popen(died, stdin=subprocess.DEVNULL))
    monkeypatch.setattr(table_workers, "WORTH_IT", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    made = tables.write_tables(CONFIG, "pndm", tmp_path / "t.npz", ["euler", "DDIM", "euler a"], cache=tmp_path / "c")
    assert set(made.schedulers) == {"euler", "ddim", "euler_ancestral", "pndm"}
    file = TableFile((tmp_path / "t.npz").read_bytes())
    assert len(file.table("ddim@1", 15).counts) == 12


def test_names_and_etas_that_are_asked_for(tmp_path: Path, few_steps: None) -> None:
    def write(names: Any, etas: Any = ()) -> Any:
        return tables.write_tables(CONFIG, "pndm", tmp_path / "t.npz", names, etas, tmp_path / "c")

    made = write(["DPM++ 2M", "eulerdiscretescheduler", "DDIM"], (0.3, 1.0))
    assert set(made.schedulers) == {"dpmpp_2m", "euler", "ddim", "pndm"}
    assert made.schedulers["ddim"].etas == (0.0, 1.0, 0.3)
    assert made.schedulers["euler"].etas == ()
    assert json.loads(json.dumps(made.refused))["Restart"]
    with pytest.raises(OptionInvalid, match=r"'eulr'.*Did you mean 'euler'"):
        write(["eulr"])
    with pytest.raises(SchedulerUnsupported, match="goes back up in noise"):
        write(["restart"])
    with pytest.raises(SchedulerUnsupported, match="of kind 'flow'"):
        write(["flow_euler"])


def test_a_config_that_is_none_of_ours_is_own(tmp_path: Path, few_steps: None) -> None:
    config = {**CONFIG, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "lower_order_final": False,
              "algorithm_type": "dpmsolver++", "solver_type": "heun", "euler_at_final": True}  # fmt: skip
    from export.solver import own_scheduler

    assert own_scheduler(config) == "own"
    made = tables.write_tables(config, "own", tmp_path / "t.npz", ["euler"], cache=tmp_path / "c")
    assert made.schedulers["own"].class_name == "DPMSolverMultistepScheduler"
