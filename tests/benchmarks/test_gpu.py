"""The eight requests on a fake backend: what is written, what is measured, and how two runs compare."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gpu
from tests.fake_backend import FakeBackend
from tests.fake_bench import Bench
from tests.fake_bundle import write_bundle


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A bundle, and the fake backend in the place of onnxruntime."""
    backend = FakeBackend()
    module = SimpleNamespace(open_backend=lambda *_: backend, fake=backend)
    monkeypatch.setitem(sys.modules, "runtime.backends.onnxruntime", module)
    monkeypatch.setattr(gpu, "gpu_facts", lambda backend: {"gpu": "none"})
    return write_bundle(tmp_path / "fake", ("fp32", "fp16"))


def test_a_run_and_its_comparison_with_itself(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["run", str(folder), "--backend", "onnxruntime", "--size", "128", "--repeats", "1", "--out", str(out)]
    assert gpu.main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["step_ms"] > 0
    launched = sys.modules["runtime.backends.onnxruntime"].fake.events
    assert launched.count("conditioning") == 16, "every round computes what it tells of"
    assert sorted(path.name for path in out.iterdir()) == ["pictures.npz", "result.json", "sheet.png"]
    assert np.load(out / "pictures.npz")["images"].shape == (8, 128, 128, 3)

    assert gpu.main(["compare", str(out), str(out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["median_psnr_db"] == 999.0


def test_what_plan_json_tells_is_in_the_result(monkeypatch, tmp_path):
    bench = Bench(monkeypatch, tmp_path, "8.6")
    found = gpu.plans_of(bench.folder)
    assert {path.rsplit("/", 1)[-1] for path in found} == {
        f"{graph}.plan" for graph in ("start", "denoiser", "decoder")
    }
    assert all(plan["gate"] == "passed" and plan["size_bytes"] > 0 for plan in found.values())


def test_psnr_of_one_grey_level():
    black = np.zeros((4, 4, 3))
    assert gpu.psnr(black, black + 1) == pytest.approx(48.131)


def test_a_wrong_option_is_told_apart_from_a_failure(folder, tmp_path, capsys):
    words = ["run", str(folder), "--backend", "cuda", "--out", str(tmp_path / "out")]
    assert gpu.main(words) == 2
    assert "OptionInvalid" in capsys.readouterr().err
