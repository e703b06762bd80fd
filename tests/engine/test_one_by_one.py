"""Graphs through which samples pass one by one: what their plans take, and that a batch is its samples."""

from __future__ import annotations

import gc

import msgspec
import numpy as np
import onnx
import pytest

from benchmarks.polygraphy_tools import by_sample
from engine.binding import Binding, Graph
from engine.bundle import load_bundle
from engine.errors import ExecutionFailed
from engine.gate import gate
from engine.profiles import parse_profile
from runtime.memory import Wiring
from tests.cut_plans import put
from tests.fake_plans import Shelf
from tests.toy_bundle import GRAPHS, write_bundle

DIMS = {"samples": 3, "rows": 4, "height": 72, "width": 88, "tokens": 77, "draws": 1}
DECODER = next(graph for graph in GRAPHS if graph.stage == "final")


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return Shelf(monkeypatch, write_bundle(tmp_path / "toy"))


def paint(wiring, noise):
    wiring.write({"noise": noise})
    for phase in ("conditioning", "once", "loop", "loop", "final"):
        wiring.launch(phase)
    return wiring.read("images")


def noise_of(dims):
    shape = dims["samples"], dims["draws"], 4, dims["height"] // 8, dims["width"] // 8
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_only_graphs_of_the_last_stage_whose_bindings_are_all_per_sample_pass_one_by_one():
    assert DECODER.one_by_one
    assert [graph.name for graph in GRAPHS if graph.one_by_one] == [DECODER.name]
    table = Binding(name="table", dtype="float32", shape=(200, 13), lifetime="constant")
    assert not msgspec.structs.replace(DECODER, inputs=(*DECODER.inputs, table)).one_by_one
    assert not msgspec.structs.replace(DECODER, stage="loop").one_by_one


def test_its_plan_takes_one_sample_whatever_the_profile_s_rows_are(shelf):
    bundle = load_bundle(shelf.folder)
    for text in ("128@2", "128@1-2", "dynamic:64-128@3-8"):
        profile = parse_profile(text, bundle)
        (ranges,) = profile.shapes(DECODER).values()
        assert {shape[0] for shape in ranges} == {1}
    start: Graph = next(graph for graph in GRAPHS if graph.name == "start")
    assert {shape[0] for shape in profile.shapes(start)["noise"]} == {2, 4, 8}


def test_a_batch_of_odd_size_is_what_its_samples_are_alone(shelf):
    shelf.put("dynamic:64-128@1-4")
    backend, noise = shelf.open(), noise_of(DIMS)
    images = paint(Wiring(backend, GRAPHS, DIMS), noise)
    assert images.shape[0] == 3
    assert len({image.tobytes() for image in images}) == 3
    for index in range(3):
        alone = paint(Wiring(backend, GRAPHS, {**DIMS, "samples": 1, "rows": 2}), noise[index : index + 1])
        np.testing.assert_array_equal(images[index], alone[0])


def test_two_batches_share_the_execution_contexts_and_nothing_stays(shelf):
    shelf.put("dynamic:64-128@1-4")
    backend = shelf.open()
    before = len(shelf.cuda.memory)
    for seed in range(3):
        wiring = Wiring(backend, GRAPHS, DIMS)
        paint(wiring, noise_of(DIMS) * seed)
        del wiring
        gc.collect()
    (chain,) = (engines._chains[DECODER.name] for engines in backend._engines.values())
    assert [len(engine.contexts) for engine in chain] == [2]  # one for each of the two turns of carried pairs
    assert len(shelf.cuda.memory) == before
    wiring = Wiring(backend, GRAPHS, DIMS)
    backend.close()
    with pytest.raises(ExecutionFailed, match="after close"):
        wiring.launch("final")


def test_the_gate_compares_a_case_of_several_samples_with_a_plan_for_one(shelf):
    verdict = gate(put(shelf))[DECODER.name]
    assert verdict.status == "passed"
    assert "small" in [one.case for one in verdict.comparisons]
    assert not [line for line in verdict.ungated if line.startswith("case")]


def test_a_plan_of_it_that_is_wrong_is_rejected(shelf):
    model = onnx.load(shelf.folder / DECODER.file)
    next(node for node in model.graph.node if node.op_type == "Abs").op_type = "Relu"
    verdict = gate(put(shelf, models={DECODER.name: model}))[DECODER.name]
    assert verdict.status == "rejected"
    assert "'images' of decoder, case default" in verdict.reason


def test_polygraphy_s_chain_is_fed_sample_by_sample():
    fed = []

    def infer(feed):
        fed.append({name: array.shape for name, array in feed.items()})
        return {"double": 2 * feed["latents"]}

    latents = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(by_sample(infer, {"latents": latents})["double"], 2 * latents)
    assert fed == [{"latents": (1, 4)}] * 3
