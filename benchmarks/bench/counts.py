"""How much a graph has to do: floating-point operations and the fewest bytes, counted from the graph itself.

The floor of its time is the larger of operations over the device's product rate, and bytes over its copy rate.
Knows neither contenders nor clocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from engine.binding import Dims, Graph, Precision
from engine.bundle import Bundle
from engine.shapes import FLOATS, TensorType, tensor_types

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """flops: two for each multiplication and addition of products and convolutions, which are nearly all of them.

    elements: floating-point numbers that must be read or written at least once: weights, inputs, outputs.
    """

    flops: float
    elements: int

    def __add__(self, other: Count) -> Count:
        """Of two graphs, one after the other."""
        return Count(self.flops + other.flops, self.elements + other.elements)

    def floor(self, precision: str, tflops: float, gb_s: float) -> tuple[float, str]:
        """The fewest milliseconds at these ceilings, and which of them it is: `compute` or `memory`."""
        compute = self.flops / tflops / 1e9
        memory = self.elements * SIZES[precision] / gb_s / 1e6
        return max((compute, "compute"), (memory, "memory"))

    def told(self, precision: str) -> dict[str, float]:
        """For the result: gflop, mib, and flops for each byte."""
        size = self.elements * SIZES[precision]
        return {"gflop": self.flops / 1e9, "mib": size / 2**20, "intensity": self.flops / size if size else 0.0}


def counts(folder: Path, bundle: Bundle, dims: Dims) -> dict[Precision, dict[str, Count]]:
    """{variant: {graph: what one launch at these dims does}} of every graph that a picture needs."""
    return {
        variant: {graph.name: count_graph(folder, graph, dims) for graph in graphs if not graph.optional}
        for variant, graphs in bundle.variants.items()
    }


def count_graph(folder: Path, graph: Graph, dims: Dims) -> Count:
    """One graph. Raises ValueError where a shape in it depends on data."""
    model = onnx.load(str(folder / graph.file), load_external_data=False)
    return count_model(model, {binding.name: binding.resolve(dims) for binding in graph.inputs})


def count_model(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Count:
    """A model at these shapes of its inputs."""
    types = tensor_types(model, shapes)
    flops = sum(_flops(node, types) for node in model.graph.node)
    names = {tensor.name for tensor in model.graph.initializer} | set(shapes)
    names |= {value.name for value in model.graph.output}
    elements = sum(math.prod(types[name][1]) for name in names if name in types and types[name][0] in FLOATS)
    return Count(float(flops), elements)


def _flops(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> int:
    shapes = [types[name][1] if name in types else () for name in node.input]
    if node.op_type == "MatMul":
        return 2 * math.prod(types[node.output[0]][1]) * shapes[0][-1]
    if node.op_type == "Gemm":
        turned = next((attribute.i for attribute in node.attribute if attribute.name == "transA"), 0)
        return 2 * math.prod(types[node.output[0]][1]) * shapes[0][0 if turned else 1]
    if node.op_type == "Conv":
        return 2 * math.prod(types[node.output[0]][1]) * math.prod(shapes[1][1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(shapes[0]) * math.prod(shapes[1][1:])
    return 0


def as_told(found: Mapping[Precision, Mapping[str, Count]]) -> dict[str, Any]:
    """The counts as JSON types."""
    return {variant: {name: asdict(one) for name, one in graphs.items()} for variant, graphs in found.items()}
