"""Computed shapes become constants where ONNX can say them; values stay."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.reshapes import constant_shape, fix_file, fix_reshapes

ort = pytest.importorskip("onnxruntime")


class Heads(nn.Module):
    """Attention's views, and a picture's pixels as tokens and back."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, tokens, width = x.shape
        heads = x.view(rows, tokens, 4, width // 4).transpose(1, 2)
        merged = heads.transpose(1, 2).reshape(rows, -1, width)
        flat = x.reshape(rows * tokens, width)
        return merged + flat.view(rows, tokens, width), flat.view(-1, tokens, width)[:, :, None]


def traced(folder: Path) -> Path:
    path = folder / "heads.onnx"
    torch.onnx.export(
        Heads(), (torch.ones(3, 5, 16),), str(path), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y", "z"], dynamic_axes={"x": {0: "rows", 1: "tokens"}, "y": {0: "rows", 1: "tokens"}},
    )  # fmt: skip
    return path


def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (7, 2)])
def test_a_traced_module_gives_the_same_without_its_shapes(tmp_path, size):
    path = traced(tmp_path)
    x = np.random.default_rng(0).normal(size=(*size, 16)).astype(np.float32)
    expected = run(path, x)
    assert fix_file(path) >= 3
    graph = onnx.load(path).graph
    onnx.checker.check_model(str(path), full_check=True)
    # What needs two sizes that nothing keeps stays: rows and tokens, out of their product, twice.
    computed = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in names(graph)]
    assert len(computed) == 2
    for found, wanted in zip(run(path, x), expected, strict=True):
        assert np.array_equal(found, wanted)


def names(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer} | {
        node.output[0] for node in graph.node if node.op_type == "Constant"
    }


@pytest.mark.parametrize(
    ("before", "after", "shape"),
    [
        ([(2, 7, 8), (3, 5, 8)], [(2, 7, 4, 2), (3, 5, 4, 2)], [0, 0, 4, 2]),
        ([(2, 7, 8), (3, 5, 8)], [(14, 8), (15, 8)], [-1, 8]),
        ([(14, 8), (15, 8)], [(2, 7, 8), (3, 5, 8)], None),
        ([(2, 7), (3, 5)], [(7, 2), (5, 3)], None),
        ([(2, 7), (3, 5)], [(2, 1, 7), (3, 1, 5)], [0, 1, -1]),
        ([(2, 0), (3, 0)], [(0,), (0,)], None),
        ([(2, 7), (3, 5, 1)], [(14,), (15,)], None),
    ],
)
def test_what_a_constant_can_say(before, after, shape):
    assert constant_shape(before, after) == shape


def test_a_graph_that_cannot_be_followed_stays(tmp_path, caplog):
    nodes = [
        onnx.helper.make_node("NonZero", ["x"], ["places"]),
        onnx.helper.make_node("Shape", ["places"], ["shape"]),
        onnx.helper.make_node("Reshape", ["places", "shape"], ["y"]),
    ]
    values = [onnx.helper.make_tensor_value_info(n, k, s) for n, k, s in (("x", 1, ["n"]), ("y", 7, [1, None]))]
    graph = onnx.helper.make_graph(nodes, "data", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "data.onnx"
    path.write_bytes(raw := model.SerializeToString())
    with caplog.at_level(logging.WARNING, "zturbo.export"):
        assert fix_file(path) == 0
    assert "keeps its computed shapes" in caplog.text
    assert path.read_bytes() == raw
    with pytest.raises(ValueError, match=r"NonZero|depends"):
        fix_reshapes(model)
