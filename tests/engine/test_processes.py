"""Workers: what they reply, how they end, and what is said of one that did not end well."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from engine.build import plan_jobs
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, BuildFailed, BundleDamaged
from engine.job import Job, Reply, failed
from engine.processes import _Running
from engine.profiles import parse_profiles
from engine.site import site_of
from engine.target import parse_target
from engine.worker import _reply, build_plan
from tests import fake_cuda, fake_tensorrt
from tests.toy_bundle import write_bundle


@pytest.fixture
def job(monkeypatch, tmp_path) -> Job:
    """The first plan of a bundle whose first graph is damaged, for the fake TensorRT 10."""
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    folder = write_bundle(tmp_path / "toy")
    bundle = load_bundle(folder)
    jobs = plan_jobs(folder, bundle, site_of(parse_target("tensorrt")), parse_profiles(["128@2"], bundle), "fp16")
    (folder / bundle.graphs("fp16")[0].file).unlink()
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
    reply = _reply(job)
    with pytest.raises(BundleDamaged, match=r"start\.onnx: got unreadable \(No such file"):
        reply.result()


def test_out_of_memory_is_a_reply(job, monkeypatch):
    def build_plan(_):
        raise MemoryError("2 GB")

    monkeypatch.setattr("engine.worker.build_plan", build_plan)
    with pytest.raises(BuildFailed, match=r"out of memory \(2 GB\).*fewer jobs"):
        _reply(job).result()


@pytest.mark.parametrize(("code", "hint"), [(-9, True), (137, True), (-6, False), (-11, False), (1, False), (0, False)])
def test_fewer_jobs_are_advised_only_where_the_kernel_killed_it(job, code, hint):
    with pytest.raises(BuildFailed, match=f"a process that ended with {code}: last words") as caught:
        ended(job, code, None, b"last words\n").result()
    assert ("fewer jobs" in caught.value.remedy) is hint


def test_a_crash_after_the_reply_is_a_failure(job, tmp_path):
    write_bundle(Path(job.folder))
    info = build_plan(job)
    assert ended(job, 0, Reply(info=info)).result() == info
    with pytest.raises(BuildFailed, match="a plan, then a process that ended with -6: _enter_buffered_busy"):
        ended(job, -6, Reply(info=info), b"_enter_buffered_busy").result()
    with pytest.raises(BuildFailed, match="no plan at all"):
        ended(job, -6, failed(BuildFailed("x", actual="no plan at all", allowed="one", remedy="None."))).result()
