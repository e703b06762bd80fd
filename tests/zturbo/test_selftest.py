"""`zturbo doctor --selftest` on made-up TensorRTs, every step of it; and on the real RTX where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from engine.context import Bound
from engine.gate_worker import answer
from engine.worker import build_plan
from tests import fake_cuda, fake_tensorrt
from tests.zturbo.stand_ins import assert_refused
from zturbo.selftest import Report, Skip, Step, take

pytest.importorskip("onnx")
STEPS = [
    "TensorRT", "GPU", "bundle", "ONNX Runtime", "build", "identity", "parity gate", "picture", "capture",
    "build in parts", "parts at the gate", "picture by parts",
]  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Builds and gates run here, and see the fakes."""

    def run_jobs(jobs, side_by_side, on_start, on_tick=lambda: None):
        for job in jobs:
            on_start(job)
            yield job, build_plan(job)

    monkeypatch.setattr("engine.build.run_jobs", run_jobs)
    for module in ("engine.gating", "zturbo.selftest_plans"):
        monkeypatch.setattr(f"{module}.run_gate", lambda job, on_tick=lambda: None: answer(job))


@pytest.fixture
def machine(monkeypatch, in_process):
    """Put a TensorRT and a GPU that it knows here; what its engines compute is ONNX Runtime's."""
    pytest.importorskip("onnxruntime")

    def put(kind: str, gpus: int = 1):
        capability = (8, 9) if kind == "rtx" else (9, 0)
        cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=capability, count=gpus))
        return fake_tensorrt.install(monkeypatch, fake_tensorrt.fake(kind)), cuda

    return put


def outcomes(answer: dict) -> dict[str, str]:
    return {one["step"]: one["outcome"] for one in answer["selftests"][0]["findings"]}


def words(answer: dict) -> dict[str, str]:
    return {one["step"]: one["words"] for one in answer["selftests"][0]["findings"]}


@pytest.mark.parametrize("kind", ["8.6", "10", "11", "rtx"])
def test_every_step_passes_on_every_tensorrt(zturbo, machine, kind):
    _, cuda = machine(kind)
    target = "tensorrt_rtx" if kind == "rtx" else "tensorrt"
    done = zturbo("doctor", "--selftest", "--target", target, "--json")
    answer = json.loads(done.stdout)
    assert outcomes(answer) == dict.fromkeys(STEPS, "PASS"), words(answer)
    assert done.exit_code == 0
    assert answer["verdict"] == "passed"
    assert cuda.alive == 0


def test_the_report_of_a_pass(zturbo, machine):
    machine("10")
    done = zturbo("doctor", "--selftest", "--target", "tensorrt")
    assert done.exit_code == 0
    assert "self-test of tensorrt: passed" in done.stdout
    assert "NVIDIA H200, compute capability 9.0" in done.stdout
    assert "byte-equal to plain launches" in done.stdout
    assert "started denoiser 1/2" in done.stdout
    assert "PASS capture (" in done.stderr
    assert done.stdout.endswith("self-test: passed\n")


def test_a_bug_report_has_every_fact(zturbo, machine):
    machine("8.6")
    answer = json.loads(zturbo("doctor", "--selftest", "--target", "tensorrt", "--json").stdout)
    facts = answer["selftests"][0]["facts"]
    assert facts["version"] == "8.6.0"
    assert {plan["options"]["level"] for plan in facts["plans"].values()} == {0}
    assert " at level 0, " in words(answer)["build"]
    assert words(answer)["build"].startswith("8 plans built in ")
    assert words(answer)["build in parts"].startswith("2 of 9 plans built in ")  # the others were kept
    assert facts["machine"]["gpu"] == "NVIDIA H200"
    assert {"denoiser.plan.json", "denoiser.2of2.plan.json", "decoder.plan.json"} <= set(facts["plans"])
    assert facts["verdicts"]["prologue"]["status"] == "passed"
    assert facts["plain_ms_per_step"] > 0
    assert facts["captured_ms_per_step"] > 0
    assert "onnx" in answer["libraries"]


def test_a_tensorrt_that_computes_something_else_fails(zturbo, machine, monkeypatch):
    """What it builds is of other weights than it was given."""
    module, cuda = machine("11")
    real = module.Builder.build_serialized_network

    def wrong(self, network, config):
        for tensor in network.model.graph.initializer:
            if tensor.name == "denoiser.2" or tensor.name.startswith("denoiser.3"):
                array = onnx_array(tensor)
                tensor.raw_data = (array * array.dtype.type(1.5)).tobytes()
        return real(self, network, config)

    monkeypatch.setattr(module.Builder, "build_serialized_network", wrong)
    done = zturbo("doctor", "--selftest", "--target", "tensorrt", "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 1
    assert answer["verdict"] == "failed"
    assert outcomes(answer)["build"] == "FAIL"
    assert "against the reference: got an error of" in words(answer)["build"]
    assert words(answer)["picture"] == "needs build"
    assert "denoiser.plan.rejected.json" in answer["selftests"][0]["facts"]["plans"]
    assert cuda.alive == 0


def onnx_array(tensor) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def test_a_capture_that_paints_something_else_fails(zturbo, machine, monkeypatch):
    _, cuda = machine("10")
    real = cuda.cudaGraphLaunch

    def twice(self, executable, stream):
        return real(executable, stream) and real(executable, stream)

    monkeypatch.setattr(type(cuda), "cudaGraphLaunch", twice)
    answer = json.loads(zturbo("doctor", "--selftest", "--target", "tensorrt", "--json").stdout)
    assert outcomes(answer)["picture"] == "PASS"
    assert words(answer)["capture"] == "captured, the picture is another than by plain launches"
    assert answer["verdict"] == "failed"


def test_a_capture_that_cannot_be_made_fails_with_the_reason(zturbo, machine):
    _, cuda = machine("10")
    cuda.fails["cudaStreamBeginCapture"] = 900
    done = zturbo("doctor", "--selftest", "--target", "tensorrt", "--json")
    answer = json.loads(done.stdout)
    assert outcomes(answer)["capture"] == "FAIL"
    assert words(answer)["capture"].startswith("nothing is captured: CUDA, cudaStreamBeginCapture")
    assert any("a capture failed" in line for line in answer["selftests"][0]["log"])


def test_pictures_that_differ_from_run_to_run_fail(zturbo, machine, monkeypatch):
    machine("10")
    real, count = Bound.__call__, iter(range(10**6))

    def drifting(self):
        real(self)
        if "images" in self.tensors:
            array = self.tensors["images"].read()
            array[0, 0, 0, 0] ^= next(count) % 2
            self.tensors["images"].write(array)

    monkeypatch.setattr(Bound, "__call__", drifting)
    answer = json.loads(zturbo("doctor", "--selftest", "--target", "tensorrt", "--json").stdout)
    assert words(answer)["picture"] == "the same request gave two pictures"


def test_without_a_gpu_rtx_builds_and_the_rest_is_skipped(zturbo, machine):
    machine("rtx", gpus=0)
    done = zturbo("doctor", "--selftest", "--target", "tensorrt_rtx:8.6", "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 3
    assert answer["verdict"] == "incomplete"
    found = outcomes(answer)
    assert [name for name, outcome in found.items() if outcome == "SKIPPED" and name != "ONNX Runtime"] == [
        "GPU", "parity gate", "picture", "capture", "parts at the gate", "picture by parts",
    ]  # fmt: skip
    assert words(answer)["picture"] == "no GPU"
    assert "FAIL" not in found.values()


def test_without_a_gpu_tensorrt_builds_nothing(zturbo, machine):
    machine("10", gpus=0)
    done = zturbo("doctor", "--selftest", "--target", "tensorrt", "--json")
    assert done.exit_code == 3
    assert outcomes(json.loads(done.stdout))["build"] == "SKIPPED"


def test_rtx_does_not_know_every_gpu(zturbo, machine, monkeypatch):
    machine("rtx")
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(9, 0)))
    answer = json.loads(zturbo("doctor", "--selftest", "--target", "tensorrt_rtx", "--json").stdout)
    assert words(answer)["GPU"] == "no GPU for TensorRT-RTX: NVIDIA H200, compute capability 9.0"
    assert outcomes(answer)["build"] == "PASS"


def test_without_any_tensorrt_it_says_what_to_install(zturbo, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    done = zturbo("doctor", "--selftest", "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 3
    assert "pip install 'zturbo[tensorrt]'" in words(answer)["TensorRT"]
    assert words(answer)["build"] == "no TensorRT"
    assert outcomes(answer)["bundle"] == "PASS"


def test_without_onnx_it_says_what_to_install(zturbo, machine, monkeypatch):
    machine("10")
    monkeypatch.setitem(sys.modules, "zturbo.selftest_bundle", None)
    monkeypatch.setattr("zturbo.extras.EXTRAS", {"zturbo": ("tensorrt",)})
    answer = json.loads(zturbo("doctor", "--selftest", "--target", "tensorrt", "--json").stdout)
    assert outcomes(answer)["bundle"] == "SKIPPED"
    assert "pip install 'zturbo[tensorrt]'" in words(answer)["bundle"]


def test_nothing_that_a_step_raises_ends_the_report():
    def broken():
        raise RuntimeError("of no known kind")

    def absent():
        raise Skip("not here")

    report, told = Report("tensorrt"), []
    steps = [Step("a", broken), Step("b", absent, optional=True), Step("c", lambda: "fine"), Step("d", broken, ("a",))]
    take(steps, report, told.append)
    assert [(one.step, one.outcome) for one in told] == [
        ("a", "FAIL"),
        ("b", "SKIPPED"),
        ("c", "PASS"),
        ("d", "SKIPPED"),
    ]
    assert report.findings[0].words == "RuntimeError: of no known kind"
    assert any(line.startswith("Traceback") for line in report.log)
    assert report.exit_code == 1
    report.findings.pop(0)
    report.findings.pop()
    assert report.exit_code == 0


def test_the_files_go_unless_they_are_kept(zturbo, machine, monkeypatch, tmp_path):
    machine("rtx", gpus=0)
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places))
    zturbo("doctor", "--selftest", "--target", "tensorrt_rtx", "--json")
    assert not list(places.iterdir())
    zturbo("doctor", "--selftest", "--target", "tensorrt_rtx", "--keep", tmp_path / "kept", "--json")
    assert (tmp_path / "kept" / "tensorrt_rtx" / "bundle.json").is_file()
    again = zturbo("doctor", "--selftest", "--target", "tensorrt_rtx", "--keep", tmp_path / "kept", "--json")
    assert_refused(again, "OutputError")


def test_options_that_mean_nothing_are_refused(zturbo, tmp_path):
    assert_refused(zturbo("doctor", "--target", "tensorrt"), "OptionInvalid")
    assert_refused(zturbo("doctor", "--keep", tmp_path / "x"), "OptionInvalid")
    assert_refused(zturbo("doctor", tmp_path, "--selftest"), "OptionInvalid")
    assert_refused(zturbo("doctor", "--selftest", "--target", "tensorflow"), "OptionInvalid")


def test_without_a_target_all_that_are_installed_are_tested(zturbo, machine, monkeypatch):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    machine("rtx", gpus=0)
    done = zturbo("doctor", "--selftest", "--json")
    assert [one["target"] for one in json.loads(done.stdout)["selftests"]] == ["tensorrt", "tensorrt_rtx"]
    assert done.exit_code == 3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_rtx_builds_here(shell):
    """In a process of its own, with real builds; on a machine with an RTX card it runs them too."""
    done = shell("doctor", "--selftest", "--target", "tensorrt_rtx", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode in (0, 3), done.stderr.decode()
    assert {outcomes(answer)[name] for name in ("build", "identity", "build in parts")} == {"PASS"}
    facts = answer["selftests"][0]["facts"]["plans"]
    assert facts["denoiser.plan.json"]["facts"]["fused_attentions"] == 1
