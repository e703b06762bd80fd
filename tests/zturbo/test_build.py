"""`zturbo build`: what it hands on, what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from engine.audit import Finding
from engine.build import BuildEvent
from engine.errors import BuildFailed
from engine.plan import Options, read_info
from engine.verdict import Verdict
from tests.zturbo.stand_ins import assert_refused, write_plan


def event(kind: str, **fields) -> BuildEvent:
    head = {"plan": "denoiser 1/2", "graph": "denoiser", "profile": "128@2", "reason": "no plan", "seconds": None}
    return BuildEvent(kind=kind, **{**head, "done": 0, "total": 2, **fields})


@pytest.fixture
def builds(monkeypatch, small_bundle):
    """Builds are made up: a list of their options."""
    calls = []
    info = read_info(write_plan(small_bundle), "")
    info = msgspec.structs.replace(info, verdict=Verdict(status="passed"))

    def build_engines(folder, target, profiles, *, on_progress, **options):
        calls.append({"folder": folder, "target": target, "profiles": profiles, **options})
        on_progress(event("started", running=1, left=300.0))
        for elapsed in (1.0, 29.0, 31.0, 32.0, 62.0):
            on_progress(event("running", running=1, seconds=elapsed, elapsed=elapsed, left=240.0, reason="1 of them"))
        on_progress(event("built", seconds=70.0, done=1))
        return [info]

    monkeypatch.setattr("engine.build.build_engines", build_engines)
    return calls


def test_options_are_handed_on(zturbo, builds, small_bundle):
    done = zturbo(
        "build", small_bundle, "--target", "tensorrt_rtx:8.6", "--profiles", "128@2 batch", "--shared", "--parts", 7,
        "--precision", "bf16", "--level", 2, "--workspace", 64, "--jobs", 3, "--tolerance", 4, "--without", "encoder",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert builds == [{
        "folder": Path(small_bundle), "target": "tensorrt_rtx:8.6", "profiles": ["128@2", "batch"], "shared": True,
        "parts": 7, "precision": "bf16", "options": Options(level=2, workspace_mib=64), "jobs": 3, "tolerance": 4.0,
        "without": ["encoder"],
    }]  # fmt: skip


def test_defaults(zturbo, builds, small_bundle):
    assert zturbo("build", small_bundle).exit_code == 0
    assert builds == [{
        "folder": Path(small_bundle), "target": "tensorrt", "profiles": ["default"], "shared": False, "parts": None,
        "precision": "fp16", "options": Options(), "jobs": None, "tolerance": 2.0, "without": (),
    }]  # fmt: skip


def test_progress_is_on_stderr_and_results_are_on_stdout(zturbo, builds, small_bundle):
    done = zturbo("build", small_bundle)
    assert "passed" in done.stdout
    assert "started denoiser 1/2 128@2 (no plan)" in done.stderr
    assert "built denoiser 1/2 128@2 in 70.0 s" in done.stderr
    running = [line for line in done.stderr.splitlines() if line.startswith("running")]
    assert running == [
        f"running denoiser 1/2 128@2 for {seconds} s (1 of them), 1 building, about 4 min left"
        for seconds in ("31.0", "62.0")
    ]
    answer = json.loads(zturbo("build", small_bundle, "--json").stdout)
    assert answer["plans"][0]["verdict"] == "passed"
    assert answer["plans"][0]["graph"] == "decoder"


@pytest.mark.parametrize("parts", ["", "two", "-1", "1.5", "²"])
def test_parts_are_auto_or_a_number(zturbo, builds, small_bundle, parts):
    assert_refused(zturbo("build", small_bundle, f"--parts={parts}"), "OptionInvalid")
    assert builds == []


def test_an_interrupt_ends_with_130_and_says_what_stays(zturbo, small_bundle, monkeypatch):
    def build_engines(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.build.build_engines", build_engines)
    done = zturbo("build", small_bundle)
    assert done.exit_code == 130
    assert done.stderr.strip() == "interrupted: the plans that are finished stay, and the same command builds the rest"


def test_a_build_that_fails(zturbo, small_bundle, monkeypatch):
    def build_engines(*_, **__):
        raise BuildFailed("graph 'denoiser'", actual="an error of 1", allowed="0.1", remedy="See the report.")

    monkeypatch.setattr("engine.build.build_engines", build_engines)
    assert_refused(zturbo("build", small_bundle), "BuildFailed")


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Findings of an audit that is made up; what it was asked for."""
    asked, findings = [], []

    def audit(folder, target, profiles, *, on_progress, **options):
        asked.append((target, profiles, options))
        return findings

    monkeypatch.setattr("engine.audit.audit", audit)
    return asked, findings


def finding(state: str, command: str = "") -> Finding:
    return Finding(
        target="tensorrt-8.6.0-sm90", set="128@2", plan="denoiser 1/2", path=Path("x"), state=state, reason="because",
        command=command,
    )  # fmt: skip


def test_verify_of_sound_plans(zturbo, small_bundle, found):
    asked, findings = found
    findings.append(finding("valid"))
    done = zturbo("build", small_bundle, "--verify")
    assert done.exit_code == 0
    assert "denoiser 1/2" in done.stdout
    assert asked == [(None, None, {"shared": False, "precision": "fp16", "tolerance": 2.0, "without": ()})]
    answer = json.loads(zturbo("build", small_bundle, "--verify", "--json").stdout)
    assert (answer["sound"], answer["plans"][0]["state"], answer["commands"]) == (True, "valid", [])


def test_verify_ends_with_1_and_the_command_that_mends_it(zturbo, small_bundle, found):
    _, findings = found
    findings += [finding("valid"), finding("damaged", "zturbo build x --target y"), finding("stale", "zturbo build x")]
    done = zturbo("build", small_bundle, "--verify", "--target", "tensorrt", "--profiles", "128@2")
    assert done.exit_code == 1
    assert "to mend it: zturbo build x --target y\n" in done.stdout
    options = {"shared": False, "precision": "fp16", "tolerance": 2.0, "without": ()}
    assert found[0] == [("tensorrt", ["128@2"], options)]
    answer = zturbo("build", small_bundle, "--verify", "--json")
    assert answer.exit_code == 1
    assert len(json.loads(answer.stdout)["commands"]) == 2


def test_verify_where_there_are_no_plans(zturbo, small_bundle):
    done = zturbo("build", small_bundle, "--verify", "--target", "tensorrt_rtx")
    assert done.exit_code in (1, 2)  # 2 where TensorRT-RTX is not installed
    assert "zturbo build" in done.stdout + done.stderr or "pip install" in done.stderr


@pytest.mark.parametrize("option", ["--parts=2", "--level=3", "--workspace=64", "--jobs=1"])
def test_verify_refuses_what_only_a_build_heeds(zturbo, small_bundle, found, option):
    assert_refused(zturbo("build", small_bundle, "--verify", option), "OptionInvalid")
    assert found[0] == []


def test_an_interrupted_verify_does_not_speak_of_builds(zturbo, small_bundle, monkeypatch):
    def audit(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.audit.audit", audit)
    done = zturbo("build", small_bundle, "--verify")
    assert done.exit_code == 130
    assert done.stderr.strip() == "interrupted: no plan was built; the verdicts that were reached stay"


def test_verify_that_finds_nothing_names_what_was_asked_for_and_what_there_is(zturbo, small_bundle, found):
    write_plan(small_bundle)
    done = zturbo(
        "build", small_bundle, "--verify", "--target", "tensorrt_rtx:8.6", "--profiles", "64@2 128@2", "--shared",
        "--precision", "bf16",
    )  # fmt: skip
    assert done.exit_code == 1
    command = f"zturbo build {small_bundle} --target tensorrt_rtx:8.6 --profiles '64@2 128@2' --precision bf16 --shared"
    assert command in done.stdout
    assert "there are: tensorrt_rtx-1.7/128@2.fp32" in done.stderr
