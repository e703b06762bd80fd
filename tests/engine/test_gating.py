"""What a build makes of gates that crash, hang or reject: who is blamed, and what stays in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.build import build_engines
from engine.bundle import load_bundle
from engine.catalog import find_plans
from engine.dialect import load_dialect
from engine.errors import BuildFailed
from engine.job import Failure, GateJob, GateReply
from engine.parts import Size
from engine.plan import engines_folder, info_path, read_info
from engine.site import site_of
from engine.target import parse_target
from engine.verdict import NOT_YET, Verdict
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle

FAILURE = Failure("ExecutionFailed", "the parity gate", "a process that ended with -11", "verdicts", "")
DEAD = GateReply(failure=FAILURE)
CRASH = GateReply(failure=FAILURE, broken="crash")
REJECTED = Verdict(status="rejected", reason="too far")
GRAPHS = ["start", "denoiser", "decoder"]


@pytest.fixture
def folder(tmp_path, gpu, stub_builds, monkeypatch) -> Path:
    monkeypatch.setattr("engine.parts.size_of", lambda *_: Size(10, 3))
    return write_bundle(tmp_path / "toy")


def build(folder: Path, **options) -> dict[str, str]:
    infos = build_engines(folder, "tensorrt", ["128@2"], **options)
    return {info.identity.name: info.verdict.status for info in infos}


def plan(folder: Path, name: str) -> Path:
    return next(engines_folder(folder).glob("*/")) / "128@2" / f"{name}.plan"


def verdict_of(folder: Path, name: str) -> Verdict:
    return read_info(plan(folder, name), "").verdict


def rejecting_parts(job: GateJob) -> GateReply:
    """Verdicts with a denoiser in parts rejected."""
    reply = passed(job)
    return GateReply(verdicts={**reply.verdicts, "denoiser": REJECTED}) if len(job.plans["denoiser"]) > 1 else reply


def test_the_graph_that_takes_the_gate_down_is_rejected(folder, gate):
    jobs = gate(lambda job: CRASH if "decoder" in job.plans else passed(job))
    with pytest.raises(BuildFailed, match=r"graph 'decoder'.*takes the gate down: a process that ended with -11"):
        build(folder)
    assert [list(job.plans) for job in jobs] == [GRAPHS, *([name] for name in GRAPHS)]
    assert verdict_of(folder, "denoiser").status == "passed"
    assert not info_path(plan(folder, "decoder")).exists()


@pytest.mark.parametrize("alone", [passed, lambda job: CRASH])
def test_where_none_or_all_take_it_down_no_plan_is_blamed_and_the_build_fails(folder, gate, alone):
    gate(lambda job: CRASH if len(job.plans) > 1 else alone(job))
    with pytest.raises(BuildFailed, match=r"parity gate of profile 128@2: got a process that ended with -11"):
        build(folder)
    assert {verdict_of(folder, name).status for name in GRAPHS} == {"unverified"}
    gate(passed)
    assert set(build(folder).values()) == {"passed"}


def test_a_gate_that_hangs_is_asked_once_and_fails_the_build(folder, gate):
    jobs = gate(GateReply(failure=FAILURE, broken="hang"))
    with pytest.raises(BuildFailed, match="parity gate"):
        build(folder)
    assert len(jobs) == 1


def test_rejected_parts_leave_the_others_verdicts_as_they_were(folder, gate):
    gate(passed)
    build(folder)
    before = verdict_of(folder, "decoder")
    gate(lambda job: GateReply(verdicts={
        name: REJECTED if name == "denoiser" else Verdict(status="passed", ungated=("loop",)) for name in job.plans
    }))  # fmt: skip
    with pytest.raises(BuildFailed):
        build(folder, parts=2)
    assert verdict_of(folder, "decoder") == before


def test_a_new_plan_beside_rejected_parts_is_compared_with_the_chain_that_stays(folder, gate):
    gate(passed)
    build(folder)
    info_path(plan(folder, "decoder")).unlink()
    gate(rejecting_parts)
    with pytest.raises(BuildFailed):
        build(folder, parts=2)
    assert verdict_of(folder, "decoder") == NOT_YET
    jobs = gate(passed)
    assert set(build(folder).values()) == {"passed"}
    assert len(jobs) == 1


def test_a_chain_that_passed_stays_while_the_new_one_could_not_be_compared(folder, gate):
    gate(passed)
    build(folder)
    gate(DEAD)
    assert build(folder, parts=2)["denoiser 1/2"] == "unverified"
    assert verdict_of(folder, "denoiser").status == "passed"
    gate(passed)
    build(folder, parts=2)
    assert not plan(folder, "denoiser").exists()
    gate(DEAD)
    build(folder, parts=1)
    machine = site_of(parse_target("tensorrt")).machine
    (plans,) = find_plans(folder, load_bundle(folder), "fp16", load_dialect("tensorrt"), machine).sets
    assert [info.identity.name for info in plans.infos] == ["start", "denoiser 1/2", "denoiser 2/2", "decoder"]


def test_a_chain_that_is_stale_goes_whatever_it_was(folder, gate):
    gate(passed)
    build(folder)
    write_bundle(folder, scale=2.0)
    gate(DEAD)
    build(folder, parts=2)
    assert not plan(folder, "denoiser").exists()
