"""Shapes at concrete sizes against what a run shows, and axes in symbols."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Binding
from engine.bundle import load_bundle
from engine.rewrite import read_model
from engine.shapes import probe, tensor_types, walk
from tests.random_graphs import INPUTS, SIZES, feeds, random_model, run

CASES = ({"rows": 2, "samples": 1, "height": 128, "width": 136}, {"rows": 3, "samples": 2, "height": 200, "width": 128})


def with_every_tensor(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with every tensor among its outputs, and their names."""
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return model, [value.name for value in model.graph.output]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dims", SIZES, ids=str)
def test_types_are_those_of_a_run(seed, dims):
    model, _ = with_every_tensor(random_model(seed))
    found = tensor_types(model, {b.name: b.resolve(dims) for b in INPUTS})
    for name, array in run(model, feeds(dims)).items():
        assert found[name] == (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape), name


@pytest.mark.parametrize("name", ["conditioning", "start", "prologue", "denoiser", "solver", "decoder"])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_types_of_a_real_graph_are_those_of_a_run(tiny_bundle, name, dims):
    ort = pytest.importorskip("onnxruntime")
    graph = next(g for g in load_bundle(tiny_bundle).graphs("fp32") if g.name == name)
    sizes = {**dims, "tokens": 77, "draws": 2}
    inputs = {b.name: b.resolve(sizes) for b in graph.inputs}
    raw = (tiny_bundle / graph.file).read_bytes()
    found = tensor_types(read_model(raw, tiny_bundle), inputs)
    model, names = with_every_tensor(read_model(raw, tiny_bundle))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(names, {b.name: np.zeros(inputs[b.name], b.dtype) for b in graph.inputs})
    assert len(names) >= len(model.graph.node)
    for one, array in zip(names, arrays, strict=True):
        assert found[one] == (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape), one


@pytest.mark.parametrize("seed", range(20))
def test_symbolic_axes_hold_at_every_size(seed):
    model = random_model(seed)
    names = [name for node in model.graph.node for name in node.output]
    axes = probe(model, {b.name: b.shape for b in INPUTS}).axes(names)
    assert {name[0] for name in names if name not in axes} <= {"f"}  # rows·tokens, and nothing else
    for dims in SIZES:
        found = tensor_types(model, {b.name: b.resolve(dims) for b in INPUTS})
        for name, shape in axes.items():
            binding = Binding(name=name, dtype="float32", shape=shape, lifetime="transient")
            assert binding.resolve(dims) == found[name][1]


def small(nodes, inputs, constants=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "small", values, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_axis_is_divided_only_where_it_always_is():
    """Halved twice from latents: of an odd size it is rounded up, so no symbol says it; the channels are a number."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 1, 1, 1])]
    weight = numpy_helper.from_array(np.zeros((6, 4, 3, 3), np.float32), "w")
    model = small(nodes, {"x": ("rows", 4, "height/8", "width/8")}, [weight])
    probes = probe(model, {"x": ("rows", 4, "height/8", "width/8")})
    assert probes.axes_of("y") == ["rows", 6, None, "width/8"]
    assert probes.axes(["x", "y"]) == {"x": ("rows", 4, "height/8", "width/8")}


def test_sizes_that_must_be_even_are_found():
    """Cut into patches of 2, as transformers do: no odd size is possible, and half of it is an axis."""
    shape = numpy_helper.from_array(np.array([0, -1, 2], np.int64), "shape")
    model = small([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"x": ("rows", "height/8")}, [shape])
    assert probe(model, {"x": ("rows", "height/8")}).axes(["y"]) == {"y": ("rows", "height/16", 2)}


def test_what_is_the_same_at_every_size_is_a_constant():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Cast", ["width"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("Mul", ["x", "root"], ["y"]),
    ]
    model = small(nodes, {"x": ("rows", 4)}, [numpy_helper.from_array(np.array(1), "one")])
    constants = probe(model, {"x": ("rows", 4)}).constants()
    assert constants["root"] == 2
    assert "shape" not in constants


def test_a_size_that_was_halved_often_is_no_constant():
    """Six times, rounded up: nearby sizes would all come down to the same few pixels."""
    nodes, last = [], "x"
    for k in range(6):
        nodes.append(helper.make_node("MaxPool", [last], [f"x{k}"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
        last = f"x{k}"
    nodes.append(helper.make_node("Shape", [last], ["shape"]))
    nodes += [helper.make_node("Gather", ["shape", f"at{k}"], [f"size{k}"]) for k in range(4)]
    indices = [numpy_helper.from_array(np.array(k), f"at{k}") for k in range(4)]
    axes = ("rows", 4, "height/8", "width/8")
    constants = probe(small(nodes, {"x": axes}, indices), {"x": axes}).constants()
    assert [f"size{k}" in constants for k in range(4)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [("Mod", 2, "two"), ("Mod", 3, "four"), ("Mod", 0, "two"), ("Equal", 2, 3), ("Less", 2, 3), ("Equal", 0, "one")],
)
def test_what_only_some_sizes_have_is_no_constant(op, left, right):
    """Divisible, equal, in order, a single row: primes that differ are none of it."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"])]
    nodes += [helper.make_node("Gather", ["shape", f"at{k}"], [f"size{k}"]) for k in (0, 2, 3)]
    second = right if isinstance(right, str) else f"size{right}"
    nodes.append(helper.make_node(op, [f"size{left}", second], ["found"]))
    nodes.append(helper.make_node("Mod", ["two", "four"], ["fixed"]))
    numbers = {"at0": 0, "at2": 2, "at3": 3, "one": 1, "two": 2, "four": 4}
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()]
    axes = ("rows", 4, "height/8", "width/8")
    constants = probe(small(nodes, {"x": axes}, weights), {"x": axes}).constants()
    assert "found" not in constants
    assert constants["fixed"] == 2


def test_rows_and_samples_may_be_equal():
    nodes = [helper.make_node("Shape", [name], [f"{name}_shape"]) for name in ("x", "y")]
    nodes += [helper.make_node("Equal", ["x_shape", "y_shape"], ["found"])]
    axes = {"x": ("rows",), "y": ("samples",)}
    assert "found" not in probe(small(nodes, axes), axes).constants()


def test_a_rank_that_only_some_sizes_have_has_no_axes():
    model = small([helper.make_node("Squeeze", ["x"], ["y"])], {"x": ("rows", "cells")})
    assert probe(model, {"x": ("rows", "cells")}).axes(["y"]) == {}


@pytest.mark.parametrize("domain", ["", "elsewhere", "unheard.of"])
def test_operators_that_are_not_known_are_refused(domain):
    model = small([helper.make_node("Fuse", ["x"], ["y"], name="fused", domain=domain)], {"x": ("rows", 4)})
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(ValueError, match="Fuse 'fused' is no operator"):
        tensor_types(model, {"x": (2, 4)})


def test_a_size_that_depends_on_data_is_refused():
    model = small([helper.make_node("NonZero", ["x"], ["y"])], {"x": ("rows", 4)})
    with pytest.raises(ValueError, match="NonZero '' makes depends on data"):
        tensor_types(model, {"x": (2, 4)})


def test_subgraphs_are_refused():
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [onnx.ValueInfoProto(name="z")])
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["y"], name="choice", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(ValueError, match="If 'choice' has subgraphs"):
        walk(small(nodes, {"x": ("rows",)}), {"x": (2,)})


def test_sizes_that_do_not_fit_are_told():
    model = small([helper.make_node("MatMul", ["x", "x"], ["y"], name="square")], {"x": ("rows", "width")})
    with pytest.raises(ValueError, match="MatMul 'square' does not take these sizes"):
        tensor_types(model, {"x": (2, 3)})
