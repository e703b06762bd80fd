"""The second opinion by Polygraphy: on ONNX Runtime alone, and with plans whose runner is made up."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("polygraphy")
pytest.importorskip("onnxruntime")

from benchmarks import crosscheck, polygraphy_tools
from engine.bundle import FILE, Bundle, encode_bundle, load_bundle, sealed
from tests import fake_cuda
from tests.fake_plans import Shelf
from zturbo.selftest_bundle import PROFILE, write_bundle


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("POLYGRAPHY_USE_TENSORRT_RTX", raising=False)
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def shelf(monkeypatch, folder):
    """Plans for a made-up TensorRT, which Polygraphy's runner is made to run in ONNX Runtime."""
    real = polygraphy_tools.load_tools

    def load(flavour):
        tools = real(flavour)
        return replace(tools, tensorrt=lambda raw, profile: tools.onnxruntime(raw.partition(b"\n")[2]))

    monkeypatch.setattr(crosscheck, "load_tools", load)
    return Shelf(monkeypatch, folder)


def answer(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def contenders(found: dict) -> set[tuple[str, str]]:
    return {(row["contender"], row["against"]) for row in found["rows"]}


BOTH = {("ONNX Runtime fp32", "reference.npz"), ("ONNX Runtime fp16", "ONNX Runtime fp32")}


def test_without_a_gpu_fp16_is_compared_with_fp32_and_the_rest_is_named(folder, monkeypatch, capsys):
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(count=0))
    assert crosscheck.main([str(folder)]) == 0
    found = answer(capsys)
    assert found["passed"]
    assert contenders(found) == BOTH
    assert {(row["graph"], row["case"]) for row in found["rows"]} == {
        (graph.name, case)
        for graph in load_bundle(folder).graphs("fp16")
        for case in ("default", "odd")
        if not graph.hoisted_from
    }
    assert any(line.startswith("plans of tensorrt: ") for line in found["not_checked"])
    assert all(row["error"] < 1e-3 for row in found["rows"])


def test_plans_are_run_part_after_part(shelf, capsys):
    nodes = onnx.load(shelf.folder / "graphs" / "fp16" / "decoder.onnx").graph.node
    shelf.put(PROFILE, cuts={"decoder": [next(node.output[0] for node in nodes if node.op_type == "Conv")]})
    assert crosscheck.main([str(shelf.folder)]) == 0
    plans = {(f"tensorrt {PROFILE}{of}", "ONNX Runtime fp32") for of in ("", " in 2 parts")}
    assert contenders(answer(capsys)) == BOTH | plans


def test_a_plan_that_computes_something_else_misses(shelf, capsys):
    path = shelf.folder / "graphs" / "fp16" / "denoiser.onnx"
    original = path.read_bytes()
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.2), weight.name))
    path.write_bytes(model.SerializeToString())
    shelf.put(PROFILE)
    path.write_bytes(original)
    assert crosscheck.main([str(shelf.folder)]) == 1
    missed = [row for row in answer(capsys)["rows"] if row["error"] > row["allowed"]]
    assert {(row["graph"], row["contender"]) for row in missed} == {("denoiser", f"tensorrt {PROFILE}")}


def test_cases_outside_the_plans_are_named(shelf, capsys):
    shelf.put("128@2")
    assert crosscheck.main([str(shelf.folder)]) == 0
    found = answer(capsys)
    assert "solver, case odd: outside 128@2" in found["not_checked"]
    assert {row["case"] for row in found["rows"] if row["contender"] == "tensorrt 128@2"} == {"default"}


def test_a_bundle_of_one_variant_and_no_plans_has_its_record_alone(folder, monkeypatch, capsys):
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(count=0))
    body = load_bundle(folder)
    only: Bundle = sealed(replace_variants(body))
    (folder / FILE).write_bytes(encode_bundle(only))
    assert crosscheck.main([str(folder)]) == 0
    assert contenders(answer(capsys)) == {("ONNX Runtime fp16", "reference.npz")}


def test_values_that_are_not_finite_on_the_exact_side_miss(folder):
    """Whatever the contender has there: nothing is known of it."""
    bundle = load_bundle(folder)
    graph = next(one for one in bundle.graphs("fp16") if one.name == "denoiser")
    compared = crosscheck.Differences(graph, bundle.reference.cases[0], "fp16")
    exact = {one.name: np.ones((2, 3)) for one in graph.outputs}
    exact[graph.outputs[0].name][0, 0] = np.nan
    for found in (exact, {name: np.ones((2, 3)) for name in exact}):
        first, *_ = compared.add("plan", found, "ONNX Runtime fp32", exact, "fp16")
        assert (first.passed, first.error, first.not_finite) == (False, -1.0, 1)


def test_an_exact_side_that_is_not_what_was_recorded_misses(folder, monkeypatch, capsys):
    """Both variants wrong alike: neither tells of the other."""
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(count=0))
    real = np.load

    def shifted(path, **options):
        with real(path, **options) as arrays:
            wrong = "denoiser/noise_pred"
            made = {name: arrays[name] * (1.01 if name.endswith(wrong) else 1) for name in arrays.files}
        return contextlib.nullcontext(made)

    monkeypatch.setattr(crosscheck.np, "load", shifted)
    assert crosscheck.main([str(folder)]) == 1
    missed = [row for row in answer(capsys)["rows"] if row["error"] > row["allowed"]]
    assert {(row["graph"], row["contender"]) for row in missed} == {("denoiser", "ONNX Runtime fp32")}


def replace_variants(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, variants={"fp16": bundle.variants["fp16"]})


def test_no_bundle_is_a_message(tmp_path, capsys):
    assert crosscheck.main([str(tmp_path)]) == 2
    assert "BundleMissing" in capsys.readouterr().err
