"""GroupNorm as TensorRT 8.6 takes it computes what it computed before; fp32 islands are found by type; fp16 → bf16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.rewrite import (
    bfloat16_from_float16,
    fix_axes,
    float32_tensors,
    layer_norm_from_instance_norm,
    layer_norm_in_float32,
    read_model,
    wire_types,
)
from tests.features import needs_layer_norm_that_broadcasts
from tests.toy_bundle import constant, denoiser_model, model

ort = pytest.importorskip("onnxruntime")


def run(made, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def group_norm(scale: np.ndarray, bias: np.ndarray, dtype: type):
    """(N, 64, H, W) in 32 groups, as TorchScript writes it: the groups' scale and bias come through an Identity."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Identity", ["scale"], ["shared"]),
        helper.make_node("Reshape", ["x", "grouped"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "shared", "bias"], ["normed"], epsilon=1e-3),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["normed", "shape"], ["y"]),
    ]
    shape = ["n", 64, "h", "w"]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    constants = [
        constant("grouped", [0, 32, -1]),
        numpy_helper.from_array(scale.astype(dtype), "scale"),
        numpy_helper.from_array(bias.astype(dtype), "bias"),
    ]
    return model(nodes, values[:1], values[1:], constants)


@needs_layer_norm_that_broadcasts
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float16, 4e-3)])
def test_layer_norm_computes_what_group_norm_did(own, dtype, tolerance):
    """fp32: another order of the same sums. fp16: one rounding to 11 bits of values up to 4."""
    random = np.random.default_rng(0)
    scale = random.normal(size=32) if own else np.ones(32)
    bias = random.normal(size=32) if own else np.zeros(32)
    made = group_norm(scale, bias, dtype)
    x = (random.normal(size=(3, 64, 9, 7)) * 3 + 1).astype(dtype)
    before = run(made, {"x": x})[0]
    assert layer_norm_from_instance_norm(made) == 1
    kinds = [node.op_type for node in made.graph.node]
    assert "InstanceNormalization" not in kinds
    assert ("Mul" in kinds) is own
    after = run(made, {"x": x})[0]
    assert after.dtype == dtype
    np.testing.assert_allclose(after.astype(np.float64), before.astype(np.float64), atol=tolerance * 4)


def test_an_instance_norm_of_its_own_stays():
    nodes = [helper.make_node("InstanceNormalization", ["x", "one", "zero"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, "h", "w"]) for name in "xy"]
    made = model(
        nodes, values[:1], values[1:], [constant("one", [1, 1], np.float32), constant("zero", [0, 0], np.float32)]
    )
    assert layer_norm_from_instance_norm(made) == 0
    assert [node.op_type for node in made.graph.node] == ["InstanceNormalization"]


def test_a_group_norm_whose_reshape_lies_in_an_earlier_part_is_rewritten_too():
    made = group_norm(np.ones(32), np.zeros(32), np.float16)
    del made.graph.node[1]
    made.graph.input.append(helper.make_tensor_value_info("groups", TensorProto.FLOAT16, ["n", 32, "l"]))
    assert layer_norm_from_instance_norm(made) == 1


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to 8 bits, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)


def test_bf16_weights_are_the_nearest(tmp_path):
    values = np.array([1, 1.00390625, 1.01171875, -65504, 6e-8, 0.1, np.inf, -np.inf, np.nan, 0], np.float16)
    values[-2:-1].view(np.uint16)[:] = 0x7FFF  # the NaN that rounding up would make a zero
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], *half_wires(), [numpy_helper.from_array(values, "w")])
    bfloat16_from_float16(made, tmp_path, ["x", "y"], tmp_path / "weights")
    (weight,) = made.graph.initializer
    assert weight.data_type == TensorProto.BFLOAT16
    found = (np.frombuffer(weight.raw_data, "<u2").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, bfloat16(values))


def half_wires():
    return [[helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n"])] for name in "xy"]


def test_bf16_stays_inside_the_wires_that_are_kept(tmp_path):
    """x stays fp16 at the border; y, which a later part reads, leaves in fp32; casts and constants follow."""
    half = numpy_helper.from_array(np.float16(2), "")
    nodes = [
        helper.make_node("Constant", [], ["two"], value=half),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["narrow", "two"], ["y"]),
    ]
    made = model(nodes, *half_wires(), [])
    bfloat16_from_float16(made, tmp_path, ["x"], tmp_path / "weights")
    assert wire_types(made) == {"x": "float16", "y": "float32"}
    onnx.checker.check_model(made, full_check=True)
    x = np.array([1.00390625, 65504, 0.1], np.float16)
    (y,) = ReferenceEvaluator(made).run(None, {"x": x})  # ONNX Runtime multiplies no bf16
    np.testing.assert_array_equal(y, bfloat16(x) * 2)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_weights_that_lie_outside_move_to_the_new_file(tmp_path, kind):
    values = np.arange(5000, dtype=np.float32).astype(kind)
    dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
    wires = [[helper.make_tensor_value_info(name, dtype, ["n"])] for name in "xy"]
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], *wires, [numpy_helper.from_array(values, "w")])
    path = tmp_path / "old" / "graph.onnx"
    path.parent.mkdir()
    onnx.save(made, path, save_as_external_data=True, location="graph.onnx.data", size_threshold=0)
    made = read_model(path.read_bytes(), path.parent)
    bfloat16_from_float16(made, path.parent, ["x", "y"], tmp_path / "weights")
    (weight,) = made.graph.initializer
    assert not weight.HasField("raw_data")
    onnx.load_external_data_for_model(made, str(tmp_path))
    if kind is np.float32:
        np.testing.assert_array_equal(np.frombuffer(weight.raw_data, "<f4"), values)
    else:
        found = (np.frombuffer(weight.raw_data, "<u2").astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(found, bfloat16(values))


def test_fp32_tensors_of_an_fp16_graph():
    assert float32_tensors(denoiser_model()) == {"angle", "wave"}


def normed(dtype: type):
    """Two LayerNormalizations that share their scale and bias, and a sum."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["first"], name="/a/LayerNormalization"),
        helper.make_node("Add", ["first", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], name="/b/LayerNormalization"),
    ]
    weights = [numpy_helper.from_array(rng.normal(size=48).astype(dtype), name) for name in ("scale", "bias")]
    wires = [[helper.make_tensor_value_info(name, kind, ["n", 5, 48])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "norms", *wires, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_norms_in_fp32_differ_by_rounding_alone():
    made = normed(np.float16)
    feeds = {"x": np.random.default_rng(4).normal(size=(2, 5, 48)).astype(np.float16)}
    (expected,) = run(normed(np.float32), {"x": feeds["x"].astype(np.float32)})
    assert layer_norm_in_float32(made) == 2
    onnx.checker.check_model(made, full_check=True)
    (found,) = run(made, feeds)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=4e-3)
    norms = [node for node in made.graph.node if node.op_type == "LayerNormalization"]
    assert [node.output[0] for node in norms] == sorted(float32_tensors(made) & {n.output[0] for n in norms})
    assert [node.name for node in norms] == ["/a/LayerNormalization", "/b/LayerNormalization"]


def test_axes_that_have_one_size_are_fixed():
    made = normed(np.float32)
    shapes = {"x": ((2, 5, 48), (3, 5, 48), (4, 5, 48))}
    assert fix_axes(made, [shapes]) == 0
    fixed = {"x": ((2, 5, 48),) * 3}
    assert fix_axes(made, [fixed, shapes]) == 0
    assert fix_axes(made, [fixed, fixed]) == 1
    onnx.checker.check_model(made, full_check=True)
    assert [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim] == [2, 5, 48]


def test_norms_of_fp32_stay_as_they_are():
    made = normed(np.float32)
    assert layer_norm_in_float32(made) == 0
    assert made == normed(np.float32)
