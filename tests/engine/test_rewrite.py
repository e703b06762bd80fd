"""GroupNorm as TensorRT 8.6 takes it computes what it computed before; fp32 islands are found by type."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.rewrite import float32_tensors, layer_norm_from_instance_norm
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


def test_fp32_tensors_of_an_fp16_graph():
    assert float32_tensors(denoiser_model()) == {"angle", "wave"}
