"""Products of one tensor with several weights become one; what else a graph holds stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import siblings
from export.siblings import merge_siblings

WIDTHS = (8, 4, 12)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def graph_of(rng: np.random.Generator, kind: type = np.float32) -> onnx.ModelProto:
    """Three products of x, one of y, one of x with a tensor that is no weight; the first is read by a node too."""
    weights = {f"w{k}": rng.standard_normal((6, n)).astype(kind) for k, n in enumerate(WIDTHS)}
    weights["other"] = rng.standard_normal((6, 5)).astype(kind)
    nodes = [
        helper.make_node("MatMul", ["x", f"w{k}"], [f"out{k}"], name=f"/unet/mid/attn/a{k}/MatMul") for k in range(3)
    ]
    nodes += [
        helper.make_node("MatMul", ["y", "other"], ["out3"]), helper.make_node("MatMul", ["x", "free"], ["out4"]),
        helper.make_node("Neg", ["out0"], ["out5"]),
    ]  # fmt: skip
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    inputs = [helper.make_tensor_value_info(name, number, ["rows", 7, 6]) for name in ("x", "y")]
    inputs.append(helper.make_tensor_value_info("free", number, [6, 3]))
    outputs = [helper.make_tensor_value_info(f"out{k}", number, ["rows", 7, None]) for k in range(6)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def feeds_of(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    shapes = {"x": (2, 7, 6), "y": (2, 7, 6), "free": (6, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_siblings_become_one_product_and_the_results_stay(rng: np.random.Generator, tmp_path: Path) -> None:
    model, feeds = graph_of(rng), feeds_of(rng)
    expected = run(model, feeds)
    assert merge_siblings(model, tmp_path) == 2
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Split", "MatMul", "MatMul", "Neg"]
    onnx.checker.check_model(model, full_check=True)
    for found, wanted in zip(run(model, feeds), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_the_old_weights_go(rng: np.random.Generator, tmp_path: Path) -> None:
    model = graph_of(rng)
    merge_siblings(model, tmp_path)
    assert {tensor.name for tensor in model.graph.initializer} == {"siblings_0.weight", "siblings_0.sizes", "other"}


@pytest.mark.parametrize(("limit", "went"), [(6 * 4 * 12, 1), (6 * 4 * 4, 0)])
def test_no_product_grows_past_the_limit(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, went: int
) -> None:
    """8 and 4 columns fit into 12, 12 more do not."""
    monkeypatch.setattr(siblings, "MOST_BYTES", limit)
    model, feeds = graph_of(rng), feeds_of(rng)
    expected = run(model, feeds)
    assert merge_siblings(model, tmp_path) == went
    for found, wanted in zip(run(model, feeds), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_weights_in_half_precision_are_moved_to_the_bit(rng: np.random.Generator, tmp_path: Path) -> None:
    model = graph_of(rng, np.float16)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    merge_siblings(model, tmp_path)
    (merged,) = (tensor for tensor in model.graph.initializer if tensor.name == "siblings_0.weight")
    assert merged.data_type == TensorProto.FLOAT16
    assert np.array_equal(numpy_helper.to_array(merged), np.concatenate([before[f"w{k}"] for k in range(3)], axis=1))


def test_blocks_that_a_cut_may_part_keep_their_own_products(rng: np.random.Generator, tmp_path: Path) -> None:
    model, feeds = graph_of(rng), feeds_of(rng)
    expected = run(model, feeds)
    model.graph.node[2].name = "/unet/up/attn/a2/MatMul"
    assert merge_siblings(model, tmp_path) == 1
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Split", "MatMul", "MatMul", "MatMul", "Neg"]
    for found, wanted in zip(run(model, feeds), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
