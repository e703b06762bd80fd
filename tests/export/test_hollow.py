"""Graphs that are traced without their weights hold the same ones, and the module gets its own back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from engine.binding import Binding
from export import weights
from export.graph import GraphSpec, onnx_from_module
from export.hollow import hollowed


class Sums(nn.Module):
    """Weights that are read as they are, transposed, both ways, and not at all; a buffer beside them."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator), requires_grad=False)

        self.linear, self.unused = nn.Linear(8, 16), nn.Linear(3, 3)
        self.linear.weight, self.linear.bias = draw(16, 8), draw(16)
        self.square, self.inner = draw(16, 16), nn.ModuleDict({"a": nn.Linear(16, 16, bias=False)})
        self.inner["a"].weight = self.square  # one tensor under two names
        self.register_buffer("table", torch.arange(16.0)[None])

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        result: Tensor = self.inner["a"](y) + y @ self.square + self.table
        return result


def spec_of(module: nn.Module, *, hollow: bool) -> GraphSpec:
    x = Binding(name="latents", dtype="float32", shape=("rows", "tokens", 8), lifetime="transient")
    y = Binding(name="images", dtype="float32", shape=("rows", "tokens", 16), lifetime="transient")
    return GraphSpec(
        name="sums", stage="once", module=module.eval(), precision="fp32", inputs=(x,), outputs=(y,), carried={},
        hollow=hollow,
    )  # fmt: skip


@pytest.mark.parametrize("inline", [True, False])
def test_it_computes_what_the_module_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool) -> None:
    monkeypatch.setattr(weights, "INLINE_BYTES", 1 << 20 if inline else 100)
    monkeypatch.setattr(weights, "SMALL_BYTES", 100)
    module, path = Sums(), tmp_path / "sums.onnx"
    feed = {"latents": np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)}
    onnx_from_module(spec_of(module, hollow=True), feed, path)
    (found,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    assert np.abs(found - module(torch.from_numpy(feed["latents"])).numpy()).max() < 1e-5
    assert {file.name for file in tmp_path.iterdir()} == {"sums.onnx", *([] if inline else ["sums.onnx.data"])}


def test_weights_lie_as_layers_read_them_and_no_other_is_written(tmp_path: Path) -> None:
    module, path = Sums(), tmp_path / "sums.onnx"
    onnx_from_module(spec_of(module, hollow=True), {"latents": np.zeros((3, 2, 8), np.float32)}, path)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["latents"]
    assert not any(node.op_type == "Transpose" for node in graph.node)
    found = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    own = [module.linear.weight.t(), module.linear.bias, module.square, module.square.t(), module.table]
    for one in own:
        assert any(np.array_equal(array, one.numpy()) for array in found)
    assert all(array.shape != (3, 3) for array in found)


def test_the_module_gets_its_weights_back_also_when_the_trace_fails() -> None:
    module = Sums()
    before = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())

    def fail() -> None:
        with hollowed(module) as kept:
            assert all(one.is_meta for one in (*module.parameters(), *module.buffers()))
            assert kept["inner.a.weight"] is kept["square"] is before["square"]
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    after = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    assert all(after[name] is one for name, one in before.items())
