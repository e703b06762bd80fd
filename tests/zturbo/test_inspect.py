"""`zturbo inspect`: bundles and plans as tables and as JSON, and refusals of what is damaged."""

from __future__ import annotations

import json

import pytest

from engine.bundle import load_bundle
from engine.machine import Machine
from engine.plan import Facts
from engine.verdict import Comparison, Verdict
from tests.fake_template import write_templated
from tests.zturbo.stand_ins import assert_refused, write_plan


@pytest.fixture
def plan(small_bundle):
    return write_plan(small_bundle)


def test_a_bundle_shows_graphs_bindings_schedulers_and_files(zturbo, small_bundle):
    done = zturbo("inspect", small_bundle)
    assert done.exit_code == 0
    for word in (
        "decoder",
        "samples × height × width × 3",
        "← next_latents",
        "multistep",
        "1 to 100",
        "tokenizer.json",
    ):
        assert word in done.stdout


def test_a_bundle_tells_how_long_prompts_may_be(zturbo, small_bundle, tmp_path):
    write_templated(tmp_path / "zimage", masked=True)
    assert "up to 3 chunks of 77 tokens, clip skip 0 to 1" in zturbo("inspect", small_bundle).stdout
    told = zturbo("inspect", tmp_path / "zimage").stdout
    assert "in a template, up to 512 tokens in multiples of 32, masked" in " ".join(told.split())


def test_a_bundle_as_json_is_all_of_bundle_json(zturbo, small_bundle):
    answer = json.loads(zturbo("inspect", small_bundle, "--json").stdout)
    bundle = load_bundle(small_bundle)
    assert answer["kind"] == "bundle"
    assert answer["sha256"] == bundle.sha256
    assert answer["variants"]["fp32"][0]["inputs"][0]["name"] == "input_ids"
    assert answer["plans"] == []


def test_bundle_json_itself_may_be_named(zturbo, small_bundle):
    assert json.loads(zturbo("inspect", small_bundle / "bundle.json", "--json").stdout)["kind"] == "bundle"


def test_verify_compares_hashes(zturbo, small_bundle):
    path = small_bundle / "tables.npz"
    path.write_bytes(path.read_bytes()[::-1])
    assert zturbo("inspect", small_bundle).exit_code == 0
    assert_refused(zturbo("inspect", small_bundle, "--verify"), "BundleDamaged")


def test_a_bundle_edited_by_hand_is_refused(zturbo, small_bundle):
    path = small_bundle / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b'"family": "sd"', b'"family": "sx"'))
    assert_refused(zturbo("inspect", small_bundle), "BundleInvalid")


def test_what_is_neither_is_a_missing_bundle(zturbo, tmp_path):
    assert_refused(zturbo("inspect", tmp_path), "BundleMissing")


@pytest.mark.parametrize("suffix", ["", ".json"], ids=["plan", "plan.json"])
def test_a_plan_is_shown_without_tensorrt(zturbo, plan, suffix):
    done = zturbo("inspect", f"{plan}{suffix}")
    assert done.exit_code == 0
    for word in ("decoder", "128@2", "tensorrt_rtx 1.7", "8.6", "not compared", "level 2", "unverified: not compared"):
        assert word in done.stdout
    for word in ("7 (5 in float16, 2 in float32)", "fused attentions", "8.2 kB", "no GPU was needed"):
        assert word in done.stdout


def test_a_part_and_its_verdict_are_shown(zturbo, small_bundle):
    machine = Machine(gpu="NVIDIA H200", compute_capability="9.0", driver="580.1", cuda="13.0")
    far = Comparison(case="odd", graph="decoder", output="images", error=0.25, allowed=0.01, not_finite=0)
    nan = Comparison(case="loop", graph="decoder", output="images", error=-1.0, allowed=0.01, not_finite=9)
    verdict = Verdict(status="rejected", reason="too far", machine=machine, comparisons=(far, nan), ungated=("64@1",))
    plan = write_plan(small_bundle, part=(2, 7), verdict=verdict, facts=Facts())
    done = zturbo("inspect", plan)
    assert done.exit_code == 0, done.stderr
    for word in ("decoder 2/7", "rejected: too far", "NVIDIA H200", "64@1", "2.50e-01", "1.00e-02", "not finite"):
        assert word in done.stdout
    assert "layers" not in done.stdout
    assert "rejected" in zturbo("inspect", small_bundle).stdout
    assert "decoder 2/7" in zturbo("inspect", small_bundle).stdout


def test_a_plan_as_json(zturbo, plan):
    answer = json.loads(zturbo("inspect", plan, "--json", "--verify").stdout)
    assert (answer["kind"], answer["identity"]["graph"], answer["bytes_verified"]) == ("plan", "decoder", True)


def test_a_bundles_plans_are_listed_and_a_bad_one_is_named(zturbo, small_bundle, plan):
    plan.with_name("broken.plan").write_bytes(b"x")
    plans = json.loads(zturbo("inspect", small_bundle, "--json").stdout)["plans"]
    problems = [entry.get("problem", "") for entry in plans]
    assert problems[0].startswith("PlanMissing: ")
    assert problems[1] == ""
    assert "PlanMissing" in zturbo("inspect", small_bundle).stdout


def test_a_folder_of_plans(zturbo, plan):
    assert json.loads(zturbo("inspect", plan.parent, "--json").stdout)["kind"] == "plans"
    assert "decoder" in zturbo("inspect", plan.parent).stdout


def test_a_damaged_plan_is_refused_once_its_bytes_are_compared(zturbo, plan):
    plan.write_bytes(b"other")
    assert zturbo("inspect", plan).exit_code == 0
    assert_refused(zturbo("inspect", plan, "--verify"), "PlanDamaged")


def test_a_missing_plan(zturbo, small_bundle):
    assert_refused(zturbo("inspect", small_bundle / "no.plan"), "PlanMissing")


def test_the_remedy_can_be_typed(zturbo, small_bundle, plan):
    plan.write_bytes(b"other")
    done = zturbo("inspect", plan, "--verify")
    assert f"zturbo build {small_bundle} --target tensorrt_rtx --profiles 128@2 --precision fp32" in done.stderr


def test_a_plan_json_without_its_plan_is_a_problem(zturbo, small_bundle, plan):
    plan.unlink()
    (entry,) = json.loads(zturbo("inspect", small_bundle, "--json").stdout)["plans"]
    assert entry["problem"].startswith("PlanMissing: ")
    assert_refused(zturbo("inspect", plan), "PlanMissing")


@pytest.mark.parametrize("suffix", ["", ".json"], ids=["plan", "report"])
def test_what_was_rejected_is_shown(zturbo, plan, suffix):
    for ending in ("", ".json"):
        plan.with_name(plan.name + ending).rename(plan.with_name(f"{plan.name}.rejected{ending}"))
    done = zturbo("inspect", f"{plan}.rejected{suffix}")
    assert done.exit_code == 0, done.stderr
    assert "decoder" in done.stdout
