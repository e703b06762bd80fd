"""The benchmark itself, small: a tiny model, two steps, both contenders in their own processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu import main
from benchmarks.machine import Bystanders
from benchmarks.process import ContenderProcess
from benchmarks.work import Turn, work_from_bundle
from engine.errors import ExecutionFailed, OptionInvalid


class Failing:
    def __init__(self, work: object) -> None:
        pass

    def configure(self, settings: object) -> None:
        raise ValueError("no such setting")


def test_quick_run_ends_with_json(tiny_bundle: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "cpu.json"
    command = [sys.executable, "-m", "benchmarks.cpu", "--quick", "--bundle", str(tiny_bundle), "--out", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert result["speedup"] > 0
    assert 0 <= result["outside_graphs"] < 1
    assert result["psnr_db"] is None or result["psnr_db"] > 40
    assert {"cpu", "cores"} <= result["machine"].keys()
    assert {"torch", "diffusers", "onnxruntime"} <= result["versions"].keys()
    for contender in result["contenders"].values():
        assert contender["peak_bytes"] > 0
        assert contender["settings"]["threads"] >= 1


def test_a_missing_bundle_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--bundle", str(tmp_path / "none")]) == 2
    assert "BundleMissing" in capsys.readouterr().err


def test_the_source_must_be_there(bundle_folder: Path) -> None:
    with pytest.raises(OptionInvalid, match="--source"):
        work_from_bundle(bundle_folder, size_px=None, steps=2)


def test_the_work_is_the_same_each_time(tiny_bundle: Path) -> None:
    first, second = (work_from_bundle(tiny_bundle, size_px=128, steps=2) for _ in range(2))
    assert first.latents.shape == (1, 4, 16, 16)
    assert np.array_equal(first.latents, second.latents)


def test_what_a_contender_raises_reaches_the_parent(tiny_bundle: Path) -> None:
    work = work_from_bundle(tiny_bundle, size_px=128, steps=2)
    with (
        ContenderProcess(f"{__name__}:Failing", work, {}) as process,
        pytest.raises(ExecutionFailed, match=r"no such setting|No module named"),
    ):
        process.configure({"threads": 1})


def test_bystanders_of_a_quiet_moment() -> None:
    assert Bystanders([]).cores() >= 0


def test_turn_has_no_outside_without_graphs() -> None:
    assert Turn(seconds=1.0, picture=np.zeros((1, 1, 3), np.uint8), peak_bytes=1).outside is None
