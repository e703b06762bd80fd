"""One build as a worker does it: what plan.json says of it, what it reads, and how it ends."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import engine.plan
from engine.build import build_engines
from engine.errors import BuildFailed, BundleDamaged
from engine.job import GateReply, Job, Reply
from engine.plan import Options, check_identity, read_info, verified_plan
from engine.verdict import NOT_YET
from engine.worker import answer, build_plan, peak_host_bytes
from tests.toy_bundle import write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "toy", external=True)


@pytest.fixture
def jobs(folder, stub_builds):
    """The jobs of a build by graph; none of them is done."""

    def of(target: str, **options) -> dict[str, Job]:
        stub_builds.jobs.clear()
        build_engines(folder, target, ["128@2"], **options)
        return {job.identity.name: msgspec.structs.replace(job, plan=job.plan + ".own") for job in stub_builds.jobs}

    return of


def test_plan_json_says_what_was_built(jobs, rtx):
    job = jobs("tensorrt_rtx:8.6,8.9")["denoiser"]
    info = build_plan(job)
    plan = Path(job.plan)
    assert read_info(plan, "") == msgspec.structs.replace(info, sha256=read_info(plan, "").sha256)
    check_identity(plan, info.identity, job.identity, "")
    assert hashlib.sha256(verified_plan(plan, info, "")).hexdigest() == info.plan.sha256
    assert (info.version_of_schema, info.options, info.machine) == (engine.plan.VERSION, Options(), None)
    assert (info.facts.layers, info.facts.fused_attentions, info.facts.scratch_bytes) == (9, 1, 1000)
    assert info.verdict == NOT_YET


def test_where_the_plan_can_run_it_waits_for_the_gate(jobs, gpu, gate, folder):
    gate(GateReply())
    asked = jobs("tensorrt", options=Options(level=4, workspace_mib=256))
    info = build_plan(asked["denoiser"])
    assert info.verdict == NOT_YET
    assert info.machine is not None
    assert info.options == Options(level=4, workspace_mib=256)
    (cache,) = (folder / "engines").glob("*/timing-*.cache")
    assert "normed" in cache.read_text()


def test_a_part_is_built_from_the_whole_graph(jobs, rtx):
    asked = jobs("tensorrt_rtx", parts=2)
    first, second = (build_plan(asked[f"denoiser {k}/2"]) for k in (1, 2))
    assert (first.identity.part, second.identity.part) == ((1, 2), (2, 2))
    assert first.identity.shapes == second.identity.shapes
    assert first.identity.graph_sha256 == second.identity.graph_sha256
    assert first.facts.layers + second.facts.layers >= 9


@pytest.mark.parametrize("name", ["graphs/denoiser.onnx", "graphs/denoiser.onnx.data"])
def test_what_is_not_the_bundles_is_not_built(jobs, rtx, folder, name):
    job = jobs("tensorrt_rtx")["denoiser"]
    raw = bytearray((folder / name).read_bytes())
    raw[-1] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(BundleDamaged):
        build_plan(job)
    assert not Path(job.plan).exists()


def test_a_file_that_changes_after_its_check_is_not_built(jobs, rtx, folder, monkeypatch):
    job = jobs("tensorrt_rtx")["start"]
    monkeypatch.setattr("engine.worker.verified_file", lambda *_: (folder / job.graph.file).write_bytes(b"other"))
    with pytest.raises(BundleDamaged, match="changes while it is read"):
        build_plan(job)


def test_errors_come_back_as_they_were(jobs, rtx, monkeypatch):
    job = jobs("tensorrt_rtx", parts=2)["denoiser 1/2"]
    rtx.refused = {"no flags"}
    failure = msgspec.json.decode(msgspec.json.encode(answer(job)), type=Reply)
    with pytest.raises(BuildFailed, match=r"graph 'denoiser 1/2': got strongly typed: no plan; refused with \[\]"):
        failure.result()

    def starve(*_):
        raise MemoryError("9 GB")

    monkeypatch.setattr("engine.worker.plan_from_onnx", starve)
    with pytest.raises(BuildFailed, match=r"out of memory \(9 GB\)"):
        answer(job).result()


def test_a_worker_that_is_told_nothing_ends():
    done = subprocess.run(
        [sys.executable, "-m", "engine.worker"], input=b"", capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout == b""


def test_the_peak_of_memory_where_the_system_tells(monkeypatch, tmp_path):
    held = bytearray(1 << 20)
    peak = peak_host_bytes()
    assert peak is None or peak > len(held)
    status = tmp_path / "status"
    monkeypatch.setattr("engine.worker.STATUS", status)
    assert peak_host_bytes() is None
    status.write_text("Name:\tpython\n")
    assert peak_host_bytes() is None
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert peak_host_bytes() == 2 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_the_peak_is_the_workers_own_and_not_that_of_who_started_it():
    held = b"1" * (200 << 20)
    code = "from engine.worker import peak_host_bytes; print(peak_host_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < len(held)
