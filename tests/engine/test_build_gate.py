"""What a build does with the parity gate's verdicts, with plans and verdicts made up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.build import BuildEvent, build_engines
from engine.bundle import FILE, encode_bundle, load_bundle, sealed
from engine.errors import BuildFailed, OptionInvalid
from engine.gating import is_open
from engine.job import Failure, GateReply
from engine.plan import PlanInfo, engines_folder, info_path, read_info
from engine.publish import publish_info
from engine.verdict import NOT_YET, Comparison, Verdict
from engine.wanted import reference_sha256
from tests import fake_cuda
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle

GRAPHS = ["decoder", "denoiser", "start"]
FAR = Comparison(case="odd", graph="denoiser", output="sample", error=0.5, allowed=0.01, not_finite=0)
NAN = Comparison(case="small", graph="denoiser", output="sample", error=-1.0, allowed=0.01, not_finite=7)
NEAR = Comparison(case="default", graph="denoiser", output="sample", error=0.005, allowed=0.01, not_finite=0)


@pytest.fixture
def folder(tmp_path, gpu, stub_builds) -> Path:
    return write_bundle(tmp_path / "toy")


def build(folder: Path, *profiles: str, target: str = "tensorrt") -> tuple[list[PlanInfo], list[str]]:
    """The infos, and the lines that were told of checks."""
    events: list[BuildEvent] = []
    infos = build_engines(folder, target, profiles or ("128@2",), on_progress=events.append)
    return infos, [str(event) for event in events if event.kind in ("checked", "rejected")]


def plan_of(folder: Path, graph: str, name: str = "128@2") -> Path:
    return next(engines_folder(folder).glob("*")) / name / f"{graph}.plan"


def rejecting(*comparisons: Comparison, reason: str = "too far from the reference"):
    verdict = Verdict(status="rejected", reason=reason, comparisons=comparisons)
    return lambda job: GateReply(verdicts={**passed(job).verdicts, "denoiser": verdict})


def died() -> GateReply:
    return GateReply(failure=Failure("ExecutionFailed", "the parity gate", "a process that ended with -9", "", ""))


def test_verdicts_go_into_plan_json(folder, gate):
    jobs = gate(passed)
    infos, told = build(folder, "128@2", "64@1")
    assert [job.profiles for job in jobs] == [("128@2",), ("64@1",)]
    assert jobs[0].plans == {graph: (str(plan_of(folder, graph)),) for graph in ("start", "denoiser", "decoder")}
    assert len(told) == 6
    assert told[0] == "checked start 128@2 (passed (not compared: odd))"
    for info in infos:
        assert info.verdict.status == "passed"
        assert info.verdict.machine.gpu == "NVIDIA H200"
        assert info.verdict.reference == reference_sha256(load_bundle(folder))
    assert read_info(plan_of(folder, "denoiser", "64@1"), "") == msgspec.structs.replace(infos[4], sha256=read_info(
        plan_of(folder, "denoiser", "64@1"), "").sha256)  # fmt: skip


def test_what_passed_is_not_judged_again(folder, gate):
    gate(passed)
    build(folder)
    jobs = gate(passed)
    assert build(folder)[1] == []
    assert jobs == []


@pytest.mark.parametrize(("first", "then", "judged"), [(2.0, 4.0, 1), (4.0, 4.0, 1), (4.0, 2.0, 2)])
def test_what_passed_at_a_higher_tolerance_is_judged_again_at_a_lower(folder, gate, first, then, judged):
    def answer(job):
        verdicts = passed(job).verdicts
        return GateReply(verdicts={
            name: msgspec.structs.replace(one, tolerance=job.tolerance) for name, one in verdicts.items()
        })  # fmt: skip

    jobs = gate(answer)
    build_engines(folder, "tensorrt", ["128@2"], tolerance=first)
    infos = build_engines(folder, "tensorrt", ["128@2"], tolerance=then)
    assert [job.tolerance for job in jobs] == [first, then][:judged]
    assert {info.verdict.tolerance for info in infos} == {min(first, then)}


@pytest.mark.parametrize("tolerance", [0.5, -1.0, 17.0, float("nan"), float("inf")])
def test_a_tolerance_that_judges_nothing_is_refused(folder, gate, tolerance):
    with pytest.raises(OptionInvalid, match=r"tolerance: got .*; allowed: 1 to 16"):
        build_engines(folder, "tensorrt", ["128@2"], tolerance=tolerance)


def test_a_set_is_judged_again_as_a_whole_where_one_plan_is_new(folder, gate, stub_builds):
    gate(passed)
    build(folder)
    info_path(plan_of(folder, "decoder")).unlink()
    jobs = gate(passed)
    build(folder)
    assert [sorted(job.plans) for job in jobs] == [GRAPHS]


def test_a_rejected_plan_is_set_aside_with_its_report(folder, gate, stub_builds):
    gate(rejecting(NEAR, FAR))
    with pytest.raises(BuildFailed) as caught:
        build(folder, "128@2", "64@1")
    plan = plan_of(folder, "denoiser")
    report = plan.with_name("denoiser.plan.rejected.json")
    assert "graph 'denoiser', profile 128@2" in caught.value.subject
    assert caught.value.actual == "an error of 5.00e-01 in 'sample', case 'odd' (rejected too: denoiser 64@1)"
    assert caught.value.allowed == "an error of 1.00e-02"
    assert str(report) in caught.value.remedy
    assert len(stub_builds.names()) == 6  # all else was done
    for name in ("128@2", "64@1"):
        kept = plan_of(folder, "denoiser", name)
        assert not kept.exists()
        assert not info_path(kept).exists()
        assert kept.with_name("denoiser.plan.rejected").is_file()
        assert read_info(plan_of(folder, "decoder", name), "").verdict.status == "passed"
    info = msgspec.json.decode(report.read_bytes(), type=PlanInfo)
    assert info.verdict.comparisons == (NEAR, FAR)

    gate(passed)
    build(folder)
    assert stub_builds.names() == ["128@2/denoiser"]
    assert not report.exists()
    assert not plan.with_name("denoiser.plan.rejected").exists()


def test_values_that_are_not_finite_are_told_as_that(folder, gate):
    gate(rejecting(FAR, NAN))
    with pytest.raises(BuildFailed, match="7 values NaN or infinite in 'sample', case 'small'; allowed: an error of 1"):
        build(folder)


def test_a_rejection_without_comparisons_tells_its_reason(folder, gate):
    gate(rejecting(reason="no engine could be made of it"))
    with pytest.raises(BuildFailed, match="got no engine could be made of it"):
        build(folder)


def test_a_gate_that_cannot_run_leaves_plans_unverified_and_is_tried_again(folder, gate, stub_builds):
    gate(died())
    infos, _ = build(folder)
    assert {info.verdict.status for info in infos} == {"unverified"}
    assert "ended with -9" in read_info(plan_of(folder, "start"), "").verdict.reason
    stub_builds.names()
    gate(passed)
    infos, _ = build(folder)
    assert {info.verdict.status for info in infos} == {"passed"}
    assert stub_builds.names() == []


def test_a_gate_that_cannot_run_takes_no_verdict_back(folder, gate):
    gate(passed)
    build(folder)
    info_path(plan_of(folder, "decoder")).unlink()
    gate(died())
    infos, _ = build(folder)
    assert {info.identity.graph: info.verdict.status for info in infos} == {
        "start": "passed", "denoiser": "passed", "decoder": "unverified",
    }  # fmt: skip


def test_a_plan_whose_gate_was_interrupted_is_judged_by_the_next_build(folder, gate, monkeypatch, stub_builds):
    def interrupted(job):
        raise KeyboardInterrupt

    gate(interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folder)
    assert read_info(plan_of(folder, "start"), "").verdict == NOT_YET
    stub_builds.names()
    jobs = gate(passed)
    build(folder)
    assert len(jobs) == 1
    assert stub_builds.names() == []


def test_what_the_gate_could_compare_nothing_of_is_not_judged_again(folder, gate):
    gate(lambda job: GateReply(verdicts={g: Verdict(status="unverified", reason="no case fits") for g in job.plans}))
    build(folder)
    jobs = gate(passed)
    build(folder)
    assert jobs == []


def test_a_graph_that_the_gate_does_not_name_stays_unverified(folder, gate):
    gate(GateReply(verdicts={}))
    infos, _ = build(folder)
    assert {(info.verdict.status, info.verdict.reason) for info in infos} == {
        ("unverified", "the parity gate said nothing of it")
    }


def test_a_renewed_plan_keeps_its_verdict_where_the_reference_is_the_same(folder, gate):
    gate(passed)
    build(folder)
    bundle = load_bundle(folder)
    (folder / FILE).write_bytes(encode_bundle(sealed(msgspec.structs.replace(bundle, name="other"))))
    jobs = gate(passed)
    infos, _ = build(folder)
    assert jobs == []
    assert {info.verdict.status for info in infos} == {"passed"}


@pytest.mark.parametrize("part", ["arrays", "tolerance"])
def test_a_renewed_plan_is_judged_again_where_the_reference_is_another(folder, gate, part, stub_builds):
    gate(passed)
    build(folder)
    bundle = load_bundle(folder)
    if part == "arrays":
        (folder / "reference.npz").write_bytes(b"other")
        entry = msgspec.structs.replace(bundle.files["reference.npz"], size_bytes=5, sha256="1" * 64)
        bundle = msgspec.structs.replace(bundle, files={**bundle.files, "reference.npz": entry})
    else:
        case = msgspec.structs.replace(bundle.reference.cases[0], fp16_error={})
        changed = msgspec.structs.replace(bundle.reference, cases=(case, *bundle.reference.cases[1:]))
        bundle = msgspec.structs.replace(bundle, reference=changed)
    (folder / FILE).write_bytes(encode_bundle(sealed(bundle)))
    stub_builds.names()
    jobs = gate(passed)
    build(folder)
    assert len(jobs) == 1
    assert stub_builds.names() == []


def test_a_portable_plan_says_for_what_it_was_built(tmp_path, rtx, stub_builds, gate):
    jobs = gate(passed)
    folder = write_bundle(tmp_path / "toy")
    infos, told = build(folder, target="tensorrt_rtx:8.6,8.9")
    assert jobs == []
    assert {info.verdict for info in infos} == {Verdict(status="unverified", reason="built for 8.6, 8.9 without a GPU")}
    assert told[0] == "checked start 128@2 (unverified: built for 8.6, 8.9 without a GPU)"
    path = info_path(plan_of(folder, "start"))
    before = path.stat()
    assert build(folder, target="tensorrt_rtx:8.6,8.9")[1] == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    plan = plan_of(folder, "start")
    publish_info(plan, msgspec.structs.replace(infos[0], verdict=NOT_YET))  # as a kill right after the build leaves it
    assert build(folder, target="tensorrt_rtx:8.6,8.9")[1] == told[:1]


def test_a_portable_plan_is_judged_where_a_gpu_that_it_is_for_is_here(tmp_path, rtx, stub_builds, gate, monkeypatch):
    """It stays portable: the machine is that of the verdict, and the plan's own is none."""
    folder = write_bundle(tmp_path / "toy")
    build(folder, target="tensorrt_rtx:8.6,8.9")
    stub_builds.names()
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda("NVIDIA L4", capability=(8, 9)))
    jobs = gate(passed)
    infos, told = build(folder, target="tensorrt_rtx:8.6,8.9")
    assert stub_builds.names() == []
    assert [job.flavour for job in jobs] == ["tensorrt_rtx"]
    assert told[0] == "checked start 128@2 (passed (not compared: odd))"
    assert {(info.machine, info.verdict.machine.gpu) for info in infos} == {(None, "NVIDIA L4")}


def test_a_portable_plan_is_not_judged_on_a_gpu_that_it_is_not_for(tmp_path, rtx, stub_builds, gate, monkeypatch):
    """TensorRT-RTX builds for no Hopper."""
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(9, 0)))
    jobs = gate(passed)
    _, told = build(write_bundle(tmp_path / "toy"), target="tensorrt_rtx:8.6")
    assert jobs == []
    reason = "built for 8.6, and the GPU here has compute capability 9.0"
    assert told[0] == f"checked start 128@2 (unverified: {reason})"


def test_which_verdicts_are_open():
    machine = {"gpu": "x", "compute_capability": "9.0", "driver": "1", "cuda": "13.0"}
    compared = msgspec.convert({"status": "unverified", "machine": machine}, Verdict)
    assert is_open(NOT_YET)
    assert not is_open(compared)
    assert not is_open(Verdict(status="passed"))
