"""What a check of a folder of plans finds, and which command mends it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.audit import audit
from engine.build import build_engines
from engine.errors import BackendUnavailable, ProfileInvalid
from engine.job import GateReply
from engine.plan import Options, engines_folder, info_path, read_info
from engine.publish import publish_info
from engine.verdict import NOT_YET, Verdict
from tests import fake_cuda
from tests.engine.conftest import contents, passed
from tests.toy_bundle import write_bundle

RTX = "tensorrt_rtx:8.6"


@pytest.fixture
def folder(tmp_path, rtx, stub_builds) -> Path:
    folder = write_bundle(tmp_path / "toy")
    build_engines(folder, RTX, ["128@2", "64@1"])
    return folder


def plan_of(folder: Path, graph: str, name: str = "128@2") -> Path:
    return next(engines_folder(folder).glob(f"*/{name}/{graph}.plan"))


def states(findings) -> dict[str, str]:
    return {f"{one.set}/{one.plan}": one.state for one in findings if one.state != "valid"}


def test_sound_plans_are_told_as_that_and_nothing_is_written(folder, stub_builds):
    stub_builds.jobs.clear()
    before = contents(folder)
    findings = audit(folder, RTX)
    assert {one.state for one in findings} == {"valid"}
    assert [one.set for one in findings] == ["128@2"] * 3 + ["64@1"] * 3
    assert {one.reason for one in findings} == {"unverified: built for 8.6 without a GPU"}
    assert {one.command for one in findings} == {""}
    assert contents(folder) == before
    assert stub_builds.jobs == []


def test_what_is_wrong_is_told_with_the_command_that_mends_it(folder):
    plan_of(folder, "denoiser").write_bytes(b"other")
    info_path(plan_of(folder, "decoder")).unlink()
    info_path(plan_of(folder, "start", "64@1")).write_bytes(b"{}")
    findings = audit(folder, RTX)
    assert states(findings) == {"128@2/denoiser": "damaged", "128@2/decoder": "missing", "64@1/start": "damaged"}
    commands = {one.command for one in findings if one.state != "valid"}
    assert commands == {f"zturbo build {folder} --target {RTX} --profiles {size}" for size in ("128@2", "64@1")}
    assert next(one for one in findings if one.state == "missing").reason == "no plan"


def test_stale_plans(folder):
    write_bundle(folder, scale=2.0)
    findings = audit(folder, RTX, ["64@1"])
    assert states(findings) == {"64@1/start": "stale", "64@1/denoiser": "stale", "64@1/decoder": "stale"}
    reasons = {one.plan: one.reason for one in findings}
    assert reasons["denoiser"].startswith("graph file it was built from: sha256")
    assert reasons["start"] == "the bundle changed, this graph did not"


def test_profiles_that_were_never_built_are_missing(folder):
    before = contents(folder)
    assert set(states(audit(folder, RTX, ["256@2"])).values()) == {"missing"}
    assert set(states(audit(folder, "tensorrt_rtx:8.9", ["256@2"])).values()) == {"missing"}
    assert audit(folder, "tensorrt_rtx:8.9") == []
    assert contents(folder) == before
    with pytest.raises(ProfileInvalid):
        audit(folder, RTX, ["nonsense"])


def test_shared_and_other_precisions_are_found_and_mended_as_such(folder):
    build_engines(folder, RTX, ["64@1", "128@2"], shared=True)
    plan_of(folder, "start", "64@1+128@2").unlink()
    (wrong,) = [one for one in audit(folder, RTX) if one.state != "valid"]
    assert wrong.command.endswith("--profiles '64@1 128@2' --shared")
    assert states(audit(folder, RTX, ["128@2", "64@1"], shared=True)) == {"64@1+128@2/start": "missing"}


def test_parts_are_checked_each(folder, monkeypatch):
    from engine.parts import Size

    monkeypatch.setattr("engine.parts.size_of", lambda *_: Size(9, 3))
    build_engines(folder, RTX, ["128@2"], parts=3)
    assert states(audit(folder, RTX)) == {}
    plan_of(folder, "denoiser.2of3").unlink()
    findings = audit(folder, RTX)
    assert states(findings) == {"128@2/denoiser 2/3": "missing"}
    assert len(findings) == 8


def test_every_target_there_is_where_none_is_named(folder, stub_builds):
    build_engines(folder, "tensorrt_rtx:8.9", ["128@2"])
    (engines_folder(folder) / "nothing of ours").mkdir()
    assert len({one.target for one in audit(folder)}) == 2
    assert len(audit(folder)) == 9


def test_without_tensorrt_the_folders_names_tell(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    assert states(audit(folder, RTX)) == {}
    assert states(audit(folder)) == {}
    plan_of(folder, "denoiser").write_bytes(b"other")
    assert states(audit(folder)) == {"128@2/denoiser": "damaged"}
    with pytest.raises(BackendUnavailable):
        audit(folder, "tensorrt")


def test_what_is_unverified_is_compared_where_it_can_run(tmp_path, gpu, stub_builds, gate):
    folder = write_bundle(tmp_path / "toy")
    gate(GateReply(verdicts={}))
    build_engines(folder, "tensorrt", ["128@2"], options=Options(level=5))
    jobs = gate(passed)
    findings = audit(folder, "tensorrt")
    assert len(jobs) == 1
    assert {(one.state, one.reason) for one in findings} == {("valid", "passed (not compared: odd)")}
    assert read_info(plan_of(folder, "start"), "").verdict.status == "passed"
    audit(folder, "tensorrt")
    assert len(jobs) == 1


def test_portable_plans_are_compared_where_their_gpu_is_here(folder, gate, monkeypatch):
    jobs = gate(passed)
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(9, 0)))
    assert {one.reason for one in audit(folder, RTX)} == {"unverified: built for 8.6 without a GPU"}
    assert jobs == []
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(8, 6)))
    assert {one.reason for one in audit(folder)} == {"passed (not compared: odd)"}
    assert [job.profiles for job in jobs] == [("128@2",), ("64@1",)]


def test_what_the_gate_rejects_is_told_and_set_aside(tmp_path, gpu, stub_builds, gate):
    folder = write_bundle(tmp_path / "toy")
    gate(GateReply(verdicts={}))
    build_engines(folder, "tensorrt", ["128@2"])
    rejected = Verdict(status="rejected", reason="too far")
    gate(lambda job: GateReply(verdicts={**passed(job).verdicts, "denoiser": rejected}))
    plan = plan_of(folder, "denoiser")
    (wrong,) = [one for one in audit(folder, "tensorrt") if one.state != "valid"]
    assert (wrong.plan, wrong.state, wrong.reason) == ("denoiser", "rejected", "rejected: too far")
    assert wrong.command.startswith("zturbo build")
    assert not plan.exists()
    (again,) = [one for one in audit(folder, "tensorrt") if one.state != "valid"]
    assert (again.state, again.reason) == ("missing", "no plan, one was rejected before")


def test_a_set_that_is_not_whole_is_not_compared(tmp_path, gpu, stub_builds, gate):
    folder = write_bundle(tmp_path / "toy")
    gate(GateReply(verdicts={}))
    build_engines(folder, "tensorrt", ["128@2"])
    plan_of(folder, "denoiser").unlink()
    jobs = gate(passed)
    findings = audit(folder, "tensorrt")
    assert jobs == []
    assert read_info(plan_of(folder, "start"), "").verdict.status == NOT_YET.status
    assert states(findings) == {"128@2/denoiser": "missing"}


def test_a_chain_that_is_stale_as_a_whole_is_told_with_its_reasons_and_its_options(tmp_path, gpu, stub_builds, gate):
    from engine.parts import Size

    folder = write_bundle(tmp_path / "toy")
    gate(passed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.parts.size_of", lambda *_: Size(9, 3))
        build_engines(folder, "tensorrt", ["128@2"], parts=3, options=Options(level=2, workspace_mib=64))
    write_bundle(folder, scale=2.0)
    findings = audit(folder, "tensorrt")
    denoiser = [one for one in findings if one.plan.startswith("denoiser")]
    assert [one.plan for one in denoiser] == ["denoiser 1/3", "denoiser 2/3", "denoiser 3/3"]
    assert {one.state for one in denoiser} == {"stale"}
    assert denoiser[0].reason.startswith("graph file it was built from: sha256")
    assert denoiser[0].command.endswith("--profiles 128@2 --parts 3 --level 2 --workspace 64")


def test_what_was_rejected_but_never_set_aside_is_told_as_that(folder):
    plan = plan_of(folder, "denoiser")
    info = read_info(plan, "")
    publish_info(plan, msgspec.structs.replace(info, verdict=Verdict(status="rejected", reason="too far")))
    (wrong,) = [one for one in audit(folder, RTX) if one.state != "valid"]
    assert (wrong.state, wrong.reason) == ("rejected", "rejected: too far")


def test_only_folders_that_a_build_would_write_are_looked_at(folder):
    target = next(path for path in engines_folder(folder).iterdir() if path.is_dir())
    (target / "0128@2").mkdir()
    (target / "128@2-2").mkdir()
    assert {one.set for one in audit(folder, RTX)} == {"128@2", "64@1"}


def test_what_another_kind_of_gpu_passed_is_compared_on_this_one(tmp_path, rtx, stub_builds, gate, monkeypatch):
    folder, target = write_bundle(tmp_path / "toy"), "tensorrt_rtx:8.6,8.9"
    jobs = gate(passed)
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(8, 6)))
    build_engines(folder, target, ["128@2"])
    audit(folder, target)
    assert len(jobs) == 1
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(8, 9)))
    audit(folder, target)
    assert len(jobs) == 2
    machine = read_info(plan_of(folder, "start"), "").verdict.machine
    assert machine is not None
    assert machine.compute_capability == "8.9"


def test_what_was_rejected_but_never_set_aside_is_built_again(folder, stub_builds):
    plan = plan_of(folder, "denoiser")
    info = read_info(plan, "")
    publish_info(plan, msgspec.structs.replace(info, verdict=Verdict(status="rejected", reason="too far")))
    stub_builds.names()
    build_engines(folder, RTX, ["128@2"])
    assert stub_builds.names() == ["128@2/denoiser"]
