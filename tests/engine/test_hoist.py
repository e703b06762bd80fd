"""What depends on the conditioning alone, taken out of a graph: the prologue and the rest give what the whole gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Binding
from engine.bundle import load_bundle
from engine.hoist import hoist
from engine.rewrite import read_model
from tests.engine.test_cut import ort_run
from tests.random_graphs import INPUTS, SAMPLE, SIZES, feeds, random_model, run


@pytest.mark.parametrize("seed", range(40))
def test_prologue_and_rest_of_any_graph_give_what_the_whole_gives(seed):
    model = random_model(seed)
    hoisted = hoist(model, INPUTS)
    if hoisted is None:
        return
    assert [value.name for value in hoisted.prologue.graph.input] == ["prompt"]
    assert [value.name for value in hoisted.prologue.graph.output] == [wire.name for wire in hoisted.wires]
    for part in (hoisted.prologue, hoisted.rest):
        onnx.checker.check_model(part)
    for dims in SIZES:
        wires = feeds(dims)
        made = run(hoisted.prologue, wires)
        for wire in hoisted.wires:
            assert made[wire.name].shape == wire.resolve(dims)
        whole, rest = run(model, wires), run(hoisted.rest, {**wires, **made})
        assert list(rest) == list(whole)
        for name, expected in whole.items():
            assert np.array_equal(rest[name], expected)


def test_most_random_graphs_have_a_prologue_and_need_their_prompt_no_more():
    """Else the test above would show nothing."""
    found = [hoist(random_model(seed), INPUTS) for seed in range(40)]
    rests = [{value.name for value in one.rest.graph.input} for one in found if one is not None]
    assert len(rests) > 25
    assert sum("prompt" not in rest for rest in rests) > 20


def model_of(nodes, constants, output="y"):
    inputs = [helper.make_tensor_value_info(b.name, TensorProto.FLOAT, list(b.shape)) for b in INPUTS]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SCORES = [
    helper.make_node("MatMul", ["prompt", "w"], ["keys"]),
    helper.make_node("Shape", ["prompt"], ["shape"]),
    helper.make_node("MatMul", ["keys", "sample"], ["scores"]),
]
WEIGHT = {"w": np.eye(4, dtype=np.float32)}


def test_a_shape_of_the_prompt_is_put_together_without_it():
    """Its rows from the sample, its tokens from what the prologue made, its width a number."""
    nodes = [
        *SCORES,
        helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[2], keepdims=1),
        helper.make_node("Expand", ["mean", "shape"], ["y"]),
    ]
    hoisted = hoist(model_of(nodes, WEIGHT), INPUTS)
    assert [value.name for value in hoisted.rest.graph.input] == ["sample", "prologue_00"]
    assert hoisted.wires == (
        Binding(name="prologue_00", dtype="float32", shape=("rows", "tokens", 4), lifetime="per_row"),
    )
    sources = [node.input[0] for node in hoisted.rest.graph.node if node.op_type == "Shape"]
    assert sources == ["sample", "prologue_00"]


def test_an_axis_that_nothing_else_has_keeps_the_prompt():
    nodes = [
        helper.make_node("ReduceMean", ["prompt"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Shape", ["prompt"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["tokens"]),
        helper.make_node("Cast", ["tokens"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sample", "count"], ["scaled"]),
        helper.make_node("Add", ["scaled", "column"], ["y"]),
    ]
    model = model_of(nodes, {"one": np.int64(1), "last": np.array([2])})
    hoisted = hoist(model, INPUTS)
    assert [value.name for value in hoisted.rest.graph.input] == ["sample", "prompt", "prologue_00"]
    wires = feeds(SIZES[0])
    expected = run(model, wires)["y"]
    assert np.array_equal(run(hoisted.rest, {**wires, **run(hoisted.prologue, wires)})["y"], expected)


def test_what_folds_rows_and_tokens_stays_behind():
    """A tensor of rows·tokens cannot be a wire, so it is hoisted less deep: what it was folded from crosses."""
    nodes = [
        helper.make_node("MatMul", ["prompt", "w"], ["keys"]),
        helper.make_node("Reshape", ["keys", "flat"], ["folded"]),
        helper.make_node("ReduceMean", ["sample"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["folded", "mean"], ["y"]),
    ]
    hoisted = hoist(model_of(nodes, {**WEIGHT, "flat": np.array([-1, 4])}), INPUTS)
    assert [wire.shape for wire in hoisted.wires] == [("rows", "tokens", 4)]
    assert [node.op_type for node in hoisted.prologue.graph.node] == ["MatMul"]


def test_what_is_not_by_row_stays_behind():
    """A prompt's rows are kept and put back one by one, so a wire without rows first is none."""
    nodes = [
        helper.make_node("ReduceMean", ["prompt"], ["mean"], axes=[0, 1], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Add", ["sample", "column"], ["y"]),
    ]
    assert hoist(model_of(nodes, {"last": np.array([1])}), INPUTS) is None


def test_nothing_to_hoist():
    plain = [helper.make_node("MatMul", ["prompt", "sample"], ["y"])]
    assert hoist(model_of(plain, {}), INPUTS) is None
    unconditional = [Binding(name=b.name, dtype=b.dtype, shape=b.shape, lifetime="transient") for b in INPUTS]
    assert hoist(model_of([*SCORES, helper.make_node("Neg", ["scores"], ["y"])], WEIGHT), unconditional) is None


def test_indices_do_not_cross():
    ids = Binding(name="ids", dtype="int32", shape=("rows",), lifetime="per_row")
    nodes = [
        helper.make_node("Add", ["ids", "one"], ["next"]),
        helper.make_node("Gather", ["table", "next"], ["rowwise"]),
        helper.make_node("Unsqueeze", ["rowwise", "last"], ["column"]),
        helper.make_node("Add", ["sample", "column"], ["z"]),
        helper.make_node("Cast", ["next"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["z", "mean"], ["y"]),
    ]
    constants = {"one": np.int32(1), "table": np.ones((9, 4), np.float32), "last": np.array([2])}
    model = model_of(nodes, constants)
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows"]))
    hoisted = hoist(model, [SAMPLE, ids], "text")
    assert {(wire.name, wire.dtype) for wire in hoisted.wires} <= {("text_00", "float32"), ("text_01", "float32")}
    wires = {"sample": feeds(SIZES[0])["sample"], "ids": np.array([1, 2], np.int32)}
    assert np.array_equal(run(hoisted.rest, {**wires, **run(hoisted.prologue, wires)})["y"], run(model, wires)["y"])


def test_the_whole_is_left_as_it_was():
    model = random_model(1)
    before = model.SerializeToString()
    assert hoist(model, INPUTS) is not None
    assert model.SerializeToString() == before


CONDITIONED = (
    Binding(name="sample", dtype="float32", shape=("rows", 4, "height/8", "width/8"), lifetime="transient"),
    Binding(name="timestep", dtype="float32", shape=("rows",), lifetime="transient"),
    Binding(name="encoder_hidden_states", dtype="float32", shape=("rows", "tokens", 32), lifetime="per_row"),
)


def test_prologue_and_rest_of_the_denoiser(whole_denoiser):
    """fp32: the same operations on the same numbers, but ONNX Runtime may fuse what was apart before: 1e-5."""
    model = read_model(whole_denoiser.read_bytes(), whole_denoiser.parent)
    hoisted = hoist(model, CONDITIONED)
    assert [value.name for value in hoisted.rest.graph.input][:3] == ["sample", "timestep", "prologue_00"]
    for dims in (
        {"rows": 2, "tokens": 77, "height": 128, "width": 128},
        {"rows": 3, "tokens": 9, "height": 136, "width": 200},
    ):
        rng = np.random.default_rng(0)
        wires = {b.name: rng.standard_normal(b.resolve(dims)).astype(b.dtype) for b in CONDITIONED}
        whole = ort_run(model, wires)["noise_pred"]
        rest = ort_run(hoisted.rest, {**wires, **ort_run(hoisted.prologue, wires)})["noise_pred"]
        assert np.abs(rest - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_conditioning_is_left_in_the_loop_of_a_bundle(tiny_bundle, precision):
    """K and V of all seven cross-attentions, of rows and heads and tokens."""
    graphs = {graph.name: graph for graph in load_bundle(tiny_bundle).graphs(precision)}
    prologue, denoiser = graphs["prologue"], graphs["denoiser"]
    assert (prologue.stage, prologue.hoisted_from) == ("once", "denoiser")
    assert {b.name for b in denoiser.inputs if b.lifetime == "per_row"} == {b.name for b in prologue.outputs}
    assert len(prologue.outputs) == 14
    for binding in prologue.outputs:
        rows, heads, *rest = binding.shape
        assert rows == "rows"
        assert heads in (1, 2)
        assert set(rest) == {"tokens", 32}
    assert {b.name for b in prologue.inputs} == {b.name for b in graphs["conditioning"].outputs}
