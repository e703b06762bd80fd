"""The self-test's nodes and weights as they are written one after another, and the layers that its graphs share.

Weights are seeded and the same in both precisions. Imports onnx; runs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Array, Precision

WIDTH, GROUPS = 64, 8
"""Channels of every layer, and the groups of a GroupNorm."""


class Nodes:
    """Nodes in order, each named `/<graph>/<module>/<type>`, and their weights."""

    def __init__(self, graph: str, precision: Precision) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self._graph, self._numpy = graph, np.float16 if precision == "fp16" else np.float32
        self._rng = np.random.default_rng(sum(graph.encode()))

    def add(self, module: str, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """One node; the name of what it makes."""
        name = f"/{self._graph}/{module}/{kind}_{len(self.nodes)}"
        made = out or f"{name}_output"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=name, **attributes))
        return made

    def constant(self, values: object, dtype: type = np.float32) -> str:
        """A constant of this type; its name."""
        return self._keep(np.asarray(values, dtype))

    def half_constant(self, values: object) -> str:
        """A constant of the variant's own type."""
        return self._keep(np.asarray(values, self._numpy))

    def weight(self, *shape: int) -> str:
        """Normal values that keep a product's size, rounded to fp16 whatever the variant."""
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        values = self._rng.standard_normal(shape) / np.sqrt(fan_in)
        return self._keep(values.astype(np.float16).astype(self._numpy))

    def conv(self, module: str, x: str, channels: tuple[int, int], out: str = "") -> str:
        """3×3 from so many channels to so many."""
        before, after = channels
        return self.add(module, "Conv", x, self.weight(after, before, 3, 3), pads=[1, 1, 1, 1], out=out)

    def silu(self, module: str, x: str) -> str:
        """x·sigmoid(x)."""
        return self.add(module, "Mul", x, self.add(module, "Sigmoid", x))

    def layer_norm(self, module: str, x: str) -> str:
        """Over the last axis."""
        return self.add(module, "LayerNormalization", x, self.half_constant(np.ones(WIDTH)), axis=-1, epsilon=1e-5)

    def group_norm(self, module: str, x: str) -> str:
        """As TorchScript writes it: InstanceNormalization over groups, then weight and bias."""
        grouped = self.add(module, "Reshape", x, self.constant([0, GROUPS, -1], np.int64))
        ones, zeros = self.half_constant(np.ones(GROUPS)), self.half_constant(np.zeros(GROUPS))
        normed = self.add(module, "InstanceNormalization", grouped, ones, zeros, epsilon=1e-5)
        whole = self.add(module, "Reshape", normed, self.add(module, "Shape", x))
        weight, bias = self.half_constant(np.linspace(0.5, 1.5, WIDTH)), self.half_constant(np.linspace(-1, 1, WIDTH))
        shape = self.constant([WIDTH, 1, 1], np.int64)
        scaled = self.add(module, "Mul", whole, self.add(module, "Reshape", weight, shape))
        return self.add(module, "Add", scaled, self.add(module, "Reshape", bias, shape))

    def _keep(self, array: Array) -> str:
        name = f"{self._graph}.{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name
