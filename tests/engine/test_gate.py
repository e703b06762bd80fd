"""The parity gate on the fakes: what passes, what is rejected and for which reason, and what is never compared."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.bundle import FILE, Bundle, encode_bundle, load_bundle, sealed
from engine.errors import BackendUnavailable, BundleInvalid, ExecutionFailed, PlanDamaged, PlanMismatch
from engine.gate import gate
from engine.gate_worker import answer
from engine.job import GateJob, GateReply
from engine.plan import info_path, read_info, seal
from engine.verdict import Verdict
from tests import fake_cuda, toy_bundle
from tests.cut_plans import EVERY, changed, put, scale
from tests.fake_engine import Context
from tests.fake_plans import Shelf


@pytest.fixture
def toy(monkeypatch, tmp_path) -> Shelf:
    return Shelf(monkeypatch, toy_bundle.write_bundle(tmp_path / "toy"))


@pytest.fixture
def whole(monkeypatch, tmp_path) -> Shelf:
    """A bundle with a prologue, carried pairs and every host wire, in TensorRT 11.

    onnx's own evaluator sums fp16 in fp16, which overflows in a GroupNorm, so the made-up engines need ONNX Runtime.
    """
    pytest.importorskip("onnxruntime")
    selftest = pytest.importorskip("zturbo.selftest_bundle")
    (tmp_path / "whole").mkdir()
    selftest.write_bundle(tmp_path / "whole")
    return Shelf(monkeypatch, tmp_path / "whole", "11")


def judged(shelf: Shelf, job: GateJob) -> dict[str, Verdict]:
    """The verdicts; whatever they are, nothing stays on the GPU."""
    try:
        return gate(job)
    finally:
        assert shelf.cuda.alive == 0


def statuses(verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    return {graph: verdict.status for graph, verdict in verdicts.items()}


def test_good_plans_pass_at_every_case_and_in_the_loop(toy):
    verdicts = judged(toy, put(toy))
    assert set(statuses(verdicts).values()) == {"passed"}
    denoiser = verdicts["denoiser"]
    assert [one.case for one in denoiser.comparisons] == ["default", "small", "odd", "loop", "loop"]
    assert all(one.passed for one in denoiser.comparisons)
    assert denoiser.machine is not None
    assert denoiser.machine.gpu == "NVIDIA H200"
    assert denoiser.ungated == ()


def test_a_chain_of_parts_passes_as_the_whole_does(toy):
    job = put(toy, parts={"denoiser": 3})
    assert len(job.plans["denoiser"]) == 3
    verdict = judged(toy, job)["denoiser"]
    assert verdict.status == "passed"
    assert [one.case for one in verdict.comparisons] == ["default", "small", "odd", "loop", "loop"]


def test_plans_of_a_bundle_without_a_reference_are_not_judged(toy):
    bundle = load_bundle(toy.folder)
    nothing = msgspec.structs.replace(bundle.reference, cases=(), loop=None)
    (toy.folder / FILE).write_bytes(encode_bundle(sealed(msgspec.structs.replace(bundle, reference=nothing))))
    verdicts = judged(toy, put(toy))
    assert set(statuses(verdicts).values()) == {"unverified"}
    assert verdicts["denoiser"].reason == "no recorded case fits the profiles"
    assert verdicts["denoiser"].ungated == (
        f"profile {EVERY}: no case of the reference fits it", "loop: none was recorded",
    )  # fmt: skip


def test_several_profiles_of_one_plan_are_compared_one_by_one(toy):
    verdict = judged(toy, put(toy, "128@2", EVERY))["denoiser"]
    cases = [one.case for one in verdict.comparisons]
    assert cases == [
        "default, 128@2", f"default, {EVERY}", f"small, {EVERY}", f"odd, {EVERY}",
        "loop, 128@2", "loop, 128@2", f"loop, {EVERY}", f"loop, {EVERY}",
    ]  # fmt: skip


def test_the_plan_of_altered_weights_is_rejected_and_no_other(toy):
    verdicts = judged(toy, put(toy, models=changed(toy, "denoiser", scale(1.01), "weight")))
    assert statuses(verdicts) == {"start": "passed", "denoiser": "rejected", "decoder": "passed"}
    reason = verdicts["denoiser"].reason
    assert reason.startswith("'sample' of denoiser, case default: error ")
    assert "allowed 5.03e-04" in reason
    assert verdicts["decoder"].ungated == ("loop: a graph was rejected before",)


def test_not_finite_values_are_counted(toy):
    def poison(array: np.ndarray) -> None:
        array[1] = np.nan

    verdict = judged(toy, put(toy, models=changed(toy, "denoiser", poison, "bias")))["denoiser"]
    missed = verdict.comparisons[0]
    assert (missed.error, missed.not_finite) == (-1.0, 16 * 16)
    assert "256 values NaN or infinite" in verdict.reason


def test_the_first_part_that_misses_is_named(toy):
    pytest.importorskip("onnxruntime")
    models = changed(toy, "denoiser", scale(1.01), "big")
    assert (
        "the first of 3 parts to miss is 1: 'half', error"
        in judged(toy, put(toy, models=models, parts={"denoiser": 3}))["denoiser"].reason
    )
    models = changed(toy, "denoiser", scale(2), "weight")
    reason = judged(toy, put(toy, models=models, parts={"denoiser": 3}))["denoiser"].reason
    assert "the first of 3 parts to miss is 3: 'sample', error" in reason


def test_what_cannot_be_compared_is_told_in_words(toy):
    verdicts = judged(toy, put(toy, "512@2"))
    assert set(statuses(verdicts).values()) == {"unverified"}
    assert verdicts["denoiser"].reason == "no recorded case fits the profiles"
    assert verdicts["denoiser"].machine is not None
    assert verdicts["denoiser"].ungated == (
        "case default (128, rows 2, samples 1, tokens 77): in no profile",
        "case small (64, rows 3, samples 2, tokens 77): in no profile",
        "case odd (72x64, rows 1, samples 1, tokens 77): in no profile",
        "profile 512@2: no case of the reference fits it",
        "loop: in no profile (128, rows 2, samples 1, tokens 77)",
    )  # fmt: skip
    shared = judged(toy, put(toy, "128@2", "512@2"))["start"]
    assert shared.status == "passed"
    assert "profile 512@2: no case of the reference fits it" in shared.ungated


def test_only_the_dims_that_a_graph_has_decide_whether_a_case_fits(whole):
    """A text encoder knows no size: every case with as many rows is compared."""
    verdicts = judged(whole, put(whole, "64@1-4"))
    assert [one.case for one in verdicts["conditioning"].comparisons] == ["default", "odd"]
    assert verdicts["decoder"].status == "unverified"


def rewrite_reference(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Record something else, as another export would."""
    path = folder / "reference.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, name: change(arrays[name])})
    body = json.loads((folder / FILE).read_bytes())
    body["files"]["reference.npz"] = {
        "size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    (folder / FILE).write_bytes(encode_bundle(sealed(msgspec.convert(body, Bundle))))


def test_where_the_loop_alone_misses_its_stage_is_rejected(whole):
    rewrite_reference(whole.folder, "loop/latents", lambda array: array * 1.1)
    verdicts = judged(whole, put(whole))
    rejected = {graph for graph, verdict in verdicts.items() if verdict.status == "rejected"}
    assert rejected == {"denoiser", "prologue", "solver"}
    assert verdicts["solver"].reason.startswith("'latents' of solver, case loop: error ")
    assert all(one.case != "loop" for one in verdicts["conditioning"].comparisons)


def test_where_the_images_alone_miss_the_last_stage_is_rejected(whole):
    rewrite_reference(whole.folder, "loop/images", lambda array: 255 - array)
    verdicts = judged(whole, put(whole))
    assert [graph for graph, verdict in verdicts.items() if verdict.status == "rejected"] == ["decoder"]


def test_a_prologue_is_judged_with_the_graph_it_was_hoisted_out_of(whole):
    good = judged(whole, put(whole))
    assert set(statuses(good).values()) == {"passed"}
    assert good["prologue"] == good["denoiser"]
    assert [one.graph for one in good["prologue"].comparisons] == ["denoiser", "denoiser", "solver", "decoder"]
    bad = judged(whole, put(whole, models=changed(whole, "prologue", scale(1.1), "prologue.1"), parts={"denoiser": 2}))
    assert statuses(bad) == {**statuses(good), "prologue": "rejected", "denoiser": "rejected"}
    assert "'noise_pred' of denoiser, case default: error" in bad["prologue"].reason
    if importlib.util.find_spec("onnxruntime"):
        assert "its 2 parts compute what ONNX Runtime does" in bad["prologue"].reason


def test_the_turns_of_the_carried_pairs_are_taken(whole):
    """A solver that takes one row too many at the end would pass by itself: only the loop tells."""
    model = onnx.load(whole.folder / "graphs" / "fp16" / "solver.onnx")
    last = next(node for node in model.graph.node if node.output[0] == "next_row")
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int32), "two"))
    model.graph.node.insert(0, helper.make_node("Min", ["row", "two"], ["early"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int32), "one"))
    last.op_type, last.input[:] = "Add", ["early", "one"]
    verdicts = judged(whole, put(whole, models={"solver": model}))
    assert verdicts["solver"].status == "rejected"
    assert "case loop" in verdicts["solver"].reason


def test_a_graph_that_fails_is_rejected_for_what_tensorrt_says(toy, monkeypatch):
    real = Context.execute_async_v3
    monkeypatch.setattr(
        Context, "execute_async_v3", lambda self, stream: "noise" not in self.shapes and real(self, stream)
    )
    verdicts = judged(toy, put(toy))
    assert statuses(verdicts) == {"start": "rejected", "denoiser": "passed", "decoder": "passed"}
    assert "engine 'start': execute_async_v3 returned false" in verdicts["start"].reason


def test_after_a_broken_context_nothing_is_said_of_the_graphs_that_follow(toy, monkeypatch):
    def broken(self, stream: int) -> bool:
        toy.cuda.fails["cudaStreamSynchronize"] = 700
        return False

    monkeypatch.setattr(Context, "execute_async_v3", broken)
    assert statuses(gate(put(toy))) == {"start": "rejected"}


def test_memory_that_runs_out_is_no_graphs_fault(toy):
    job = put(toy)
    toy.cuda.fails["cudaMalloc"] = fake_cuda.OUT_OF_MEMORY
    with pytest.raises(ExecutionFailed, match="out of memory"):
        gate(job)
    assert answer(job).failure is not None


def test_no_plan_is_deserialized_that_is_not_what_it_must_be(toy, monkeypatch):
    job, calls = put(toy), []
    monkeypatch.setattr(toy.module.Runtime, "deserialize_cuda_engine", lambda *_: calls.append(1))
    path = Path(job.plans["start"][0])
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"x")
    with pytest.raises(PlanDamaged):
        judged(toy, job)
    path.write_bytes(raw)
    info = read_info(path, "")
    other = msgspec.structs.replace(info, identity=msgspec.structs.replace(info.identity, version="10.0"))
    info_path(path).write_bytes(seal(other))
    with pytest.raises(PlanMismatch, match="version of TensorRT"):
        judged(toy, job)
    assert not calls


def test_a_reference_that_lacks_an_array_is_no_bundle(toy):
    path = toy.folder / "reference.npz"
    rewrite_reference(toy.folder, "loop/noise", lambda array: array)
    with np.load(path) as arrays:
        kept = {name: array for name, array in arrays.items() if name != "default/denoiser/latents"}
    np.savez(path, **kept)
    rewrite_reference(toy.folder, "loop/noise", lambda array: array)
    with pytest.raises(BundleInvalid, match="default/denoiser/latents"):
        judged(toy, put(toy))


def test_the_worker_replies_why_it_could_not_run_and_ends_with_its_parent(tmp_path, root):
    job = GateJob(folder=str(tmp_path), flavour="tensorrt", precision="fp16", profiles=("128@2",), plans={})
    command = [sys.executable, "-m", "engine.gate_worker"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()
        reply = msgspec.json.decode(process.stdout.read(), type=GateReply)
        assert process.wait(20) == 0
        process.stdin.close()
    assert reply.failure is not None
    assert reply.failure.kind == "BundleMissing"
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) != 0


def test_without_a_gpu_the_gate_does_not_run(toy):
    toy.cuda.count = 0
    with pytest.raises(BackendUnavailable):
        gate(put(toy))


def test_an_exported_bundle_passes_with_its_denoiser_in_parts(monkeypatch, tmp_path, tiny_bundle):
    """A prologue that export hoisted, and errors that torch's own fp16 made."""
    pytest.importorskip("onnxruntime")
    shelf = Shelf(monkeypatch, Path(shutil.copytree(tiny_bundle, tmp_path / "tiny")))
    verdicts = judged(shelf, put(shelf, "128@3", parts={"denoiser": 2}))
    assert set(statuses(verdicts).values()) == {"passed"}
    assert "prologue" in verdicts
    assert [one.case for one in verdicts["denoiser"].comparisons] == ["small"]


def test_a_tolerance_of_the_user_s_own_is_what_the_gate_allows_and_the_verdict_tells(toy):
    job = put(toy, models=changed(toy, "denoiser", scale(1.01), "weight"))
    strict = judged(toy, job)["denoiser"]
    assert (strict.status, strict.tolerance) == ("rejected", 2.0)
    wide = judged(toy, msgspec.structs.replace(job, tolerance=16.0))["denoiser"]
    ratios = {
        (a.case, a.output): b.allowed / a.allowed for a, b in zip(strict.comparisons, wide.comparisons, strict=False)
    }
    assert wide.tolerance == 16.0
    assert wide.text.endswith("at tolerance 16") or "at tolerance 16 (" in wide.text
    assert all(ratio >= 1 for ratio in ratios.values())
