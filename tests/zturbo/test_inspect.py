"""`zturbo inspect`: bundles and plans as tables and as JSON, and refusals of what is damaged."""

from __future__ import annotations

import json

import pytest

from engine.bundle import load_bundle
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
    for word in ("decoder", "128@2", "tensorrt_rtx 1.7", "8.6", "not compared"):
        assert word in done.stdout


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
