"""Workers: what they reply, how they end, and what is said of one that did not end well."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest

from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, BuildFailed, BundleDamaged
from engine.job import GateJob, Job, Reply, failed
from engine.plan import Options
from engine.processes import _Running, run_gate
from engine.profiles import parse_profiles
from engine.site import site_of
from engine.target import parse_target
from engine.wanted import Asked, plan_jobs
from engine.worker import answer
from tests import fake_cuda, fake_tensorrt
from tests.engine.conftest import StubBuilds
from tests.toy_bundle import write_bundle


@pytest.fixture
def job(monkeypatch, tmp_path) -> Job:
    """The first plan of a bundle whose first graph is damaged, for the fake TensorRT 10."""
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    folder = write_bundle(tmp_path / "toy")
    bundle = load_bundle(folder)
    asked = Asked(
        folder=folder, bundle=bundle, site=site_of(parse_target("tensorrt")), precision="fp16", options=Options(),
        sets=(tuple(parse_profiles(["128@2"], bundle)),), parts=None, cores=1, memory_bytes=None,
    )  # fmt: skip
    jobs = plan_jobs(asked, asked.sets[0], asked.graphs[0])
    (folder / asked.graphs[0].file).unlink()
    return jobs[0]


def ended(job: Job, returncode: int, reply: Reply | None, stderr: bytes = b"") -> _Running:
    """A worker that is over."""
    worker = _Running.__new__(_Running)
    worker.job, worker.process = job, SimpleNamespace(returncode=returncode)
    worker.stdout, worker.stderr = map(io.BytesIO, (b"" if reply is None else msgspec.json.encode(reply), stderr))
    return worker


def test_a_worker_that_replied_ends_with_0_though_its_parent_holds_stdin_open(job):
    """The fake is not installed in the worker, so it fails before or behind the import; both are replies."""
    worker = _Running(job)
    try:
        worker.process.wait(60)
        with pytest.raises((BackendUnavailable, BundleDamaged)):
            worker.result()
        assert worker.process.returncode == 0
    finally:
        worker.close()


def test_a_worker_ends_with_its_parent(root, job):
    slow = "worker.build_plan = lambda job: time.sleep(60)"
    code = f"import time; from engine import worker; {slow}; worker.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.communicate(msgspec.json.encode(job) + b"\n", timeout=30)
    assert worker.returncode == 1


def test_a_graph_that_is_gone_is_told_as_it_is(job):
    reply = answer(job)
    with pytest.raises(BundleDamaged, match=r"start\.onnx: got unreadable \(No such file"):
        reply.result()


def test_out_of_memory_is_a_reply(job, monkeypatch):
    def build_plan(_):
        raise MemoryError("2 GB")

    monkeypatch.setattr("engine.worker.build_plan", build_plan)
    with pytest.raises(BuildFailed, match=r"out of memory \(2 GB\).*fewer jobs"):
        answer(job).result()


@pytest.mark.parametrize(("code", "hint"), [(-9, True), (137, True), (-6, False), (-11, False), (1, False), (0, False)])
def test_fewer_jobs_are_advised_only_where_the_kernel_killed_it(job, code, hint):
    with pytest.raises(BuildFailed, match=f"a process that ended with {code}: last words") as caught:
        ended(job, code, None, b"last words\n").result()
    assert ("fewer jobs" in caught.value.remedy) is hint


def test_a_crash_after_the_reply_is_a_failure(job):
    info = StubBuilds().build(job)
    assert ended(job, 0, Reply(info=info)).result() == info
    with pytest.raises(BuildFailed, match="a plan, then a process that ended with -6: _enter_buffered_busy"):
        ended(job, -6, Reply(info=info), b"_enter_buffered_busy").result()
    with pytest.raises(BuildFailed, match="no plan at all"):
        ended(job, -6, failed(BuildFailed("x", actual="no plan at all", allowed="one", remedy="None."))).result()


GATES = {
    "replies": 'print(\'{"verdicts": {"denoiser": {"status": "passed"}}}\')',
    "dies": "print('so far', file=sys.stderr); os.kill(os.getpid(), 9)",
    "says nothing": "",
    "replies, then dies": "print('{}'); sys.stdout.flush(); os._exit(3)",
    "waits": "time.sleep(60)",
    "crashes": "os.kill(os.getpid(), 11)",
}


@pytest.fixture
def gate_job(monkeypatch, tmp_path):
    """A job for a gate worker that does one of GATES."""

    def make(what: str) -> GateJob:
        (tmp_path / "made_up_gate.py").write_text(f"import os, sys, time\nsys.stdin.readline()\n{GATES[what]}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr("engine.processes.GATE_WORKER", "made_up_gate")
        return GateJob(folder="x", flavour="tensorrt", precision="fp16", profiles=("128@2",), plans={})

    return make


def test_a_gates_verdicts_are_its_reply(gate_job):
    reply = run_gate(gate_job("replies"))
    assert reply.failure is None
    assert reply.verdicts["denoiser"].status == "passed"


@pytest.mark.parametrize(
    ("what", "actual"),
    [
        ("dies", "a process that ended with -9: so far"), ("says nothing", "ended with 0: nothing on stderr"),
        ("replies, then dies", "ended with 3"),
    ],
)  # fmt: skip
def test_a_gate_that_dies_is_a_reply_that_says_how(gate_job, what, actual):
    reply = run_gate(gate_job(what))
    assert reply.verdicts == {}
    assert actual in reply.failure.actual


@pytest.mark.parametrize(("what", "broken"), [("dies", None), ("replies, then dies", None), ("crashes", "crash")])
def test_a_gate_that_does_itself_in_is_told_apart_from_one_that_was_killed(gate_job, what, broken):
    assert run_gate(gate_job(what)).broken == broken


def test_a_gate_that_hangs_is_ended(gate_job, monkeypatch):
    monkeypatch.setattr("engine.processes.GATE_LIMIT_S", 0.3)
    reply = run_gate(gate_job("waits"))
    assert reply.broken == "hang"
    assert "did not end in" in reply.failure.actual


def test_a_gate_ends_with_what_a_callback_raises(gate_job):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_gate(gate_job("waits"), stop)
