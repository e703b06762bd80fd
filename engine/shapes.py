"""The types and shapes of every tensor of a graph: at concrete input shapes, and as axes of the graph's symbols.

ONNX's own inference of a whole model gives up where a shape is computed from another. Here the graph is walked at
concrete sizes: what `Shape` yields is a constant, small integers are computed on, and ONNX infers one node at a time.
Does not know what a graph means; needs neither ONNX Runtime nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, external_data_helper, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.binding import Array, Axis, resolve_axis

TensorType = tuple[int, tuple[int, ...]]
"""ONNX's elem_type, and the shape."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
MAX_INTEGERS, MAX_FLOATS = 1024, 8
"""Elements of a tensor whose value is followed: shapes and indices; scales of a Resize, and scalars."""
PROBES = {
    "rows": (2, 3, 5), "samples": (3, 7, 2), "height": (11, 67, 409), "width": (17, 101, 521), "tokens": (7, 31, 73),
    "draws": (5, 13, 43),
}  # fmt: skip
SPARE_PROBES = ((19, 103, 523), (23, 107, 541), (29, 109, 547), (37, 113, 557), (41, 127, 563), (47, 131, 569))
"""The sizes of each symbol at three probes: primes, so that no axis looks like a symbol that it is not; far apart, so
that none is the same at all probes after a UNet halved it six times; tokens within a text encoder's positions."""
MORE_PROBES = (
    {"rows": 1, "samples": 1, "height": 64, "width": 64, "tokens": 8, "draws": 1},
    {"rows": 4, "samples": 4, "height": 16, "width": 64, "tokens": 64, "draws": 4},
    {"rows": 2, "samples": 1, "height": 128, "width": 32, "tokens": 16, "draws": 2},
)
MORE_SPARE_PROBES = (64, 16, 128)
"""Sizes that primes are not: even, a power of two, 1, equal to each other, in the other order. Only what holds here too
is believed, else `width % 4` or `height == width` would be a constant."""
STEPS = (1, 2, 4, 8, 16, 32, 77)
"""What sizes are multiples of, where odd ones do not fit: patches of a picture, CLIP's chunks of a prompt."""


def size_bytes(tensor: TensorProto) -> int:
    """What a tensor's values occupy, wherever they lie."""
    size: int = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size


class SizesRefused(ValueError):
    """A node that cannot work at these sizes."""


@dataclass(frozen=True, slots=True)
class Walked:
    """A graph at concrete input shapes. types: of every tensor; values: of those that follow from shapes alone."""

    types: dict[str, TensorType]
    values: dict[str, Array]


def tensor_types(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, TensorType]:
    """The (elem_type, shape) of every tensor at these shapes of the graph's inputs.

    Raises ValueError where a shape depends on data, where a node has subgraphs, or does not take its sizes.
    """
    return walk(model, inputs).types


def walk(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> Walked:
    """Types and known values at these shapes. Raises ValueError as `tensor_types` does."""
    walker = _Walker(model)
    for tensor in model.graph.initializer:
        walker.add_constant(tensor.name, tensor)
    for value in model.graph.input:
        if value.name not in walker.types:
            walker.types[value.name] = value.type.tensor_type.elem_type, tuple(inputs[value.name])
    for node in model.graph.node:
        walker.add_node(node)
    return Walked(walker.types, walker.values)


class _Walker:
    """Types and values of what was seen so far. Equal questions to ONNX are asked once: blocks repeat."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.types: dict[str, TensorType] = {}
        self.values: dict[str, Array] = {}
        self._opsets = list(model.opset_import)
        self._versions = {opset.domain: opset.version for opset in model.opset_import}
        self._inferred: dict[Any, tuple[TensorType, ...]] = {}
        self._evaluators: dict[Any, ReferenceEvaluator] = {}

    def add_constant(self, name: str, tensor: TensorProto) -> None:
        self.types[name] = tensor.data_type, tuple(tensor.dims)
        if _is_small(self.types[name]) and not external_data_helper.uses_external_data(tensor):
            self.values[name] = numpy_helper.to_array(tensor)

    def add_node(self, node: NodeProto) -> None:
        """The types of a node's outputs, and their values where they follow from known ones."""
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            self.add_constant(node.output[0], node.attribute[0].t)
            return
        if node.op_type == "Shape" and not node.attribute:
            self._set(node.output[0], np.array(self.types[node.input[0]][1], np.int64))
            return
        if node.op_type == "Identity" and node.input[0] in self.values:
            self._set(node.output[0], self.values[node.input[0]])
            return
        types = self._infer(node)
        if types is None or (all(map(_is_small, types)) and all(not i or i in self.values for i in node.input)):
            for name, value in zip(node.output, self._evaluate(node), strict=True):
                self._set(name, value)
        else:
            self.types |= {name: one for name, one in zip(node.output, types, strict=True) if name}

    def _set(self, name: str, value: Array) -> None:
        self.types[name] = helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        if _is_small(self.types[name]):
            self.values[name] = value

    def _infer(self, node: NodeProto) -> tuple[TensorType, ...] | None:
        """The types of the node's outputs by ONNX; None where ONNX cannot tell a size."""
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ValueError(f"{node.op_type} '{node.name}' has subgraphs, whose shapes are not followed")
        attributes = tuple(attribute.SerializeToString() for attribute in node.attribute)
        seen = tuple((self.types[name], self._bytes(name)) if name else None for name in node.input)
        key = node.domain, node.op_type, attributes, seen, len(node.output)
        if key not in self._inferred:
            found = self._ask(node)
            if any(one is None for one in found):
                if any(name and name not in self.values for name in node.input):
                    raise ValueError(f"the shape of what {node.op_type} '{node.name}' makes depends on data")
                return None
            self._inferred[key] = tuple(one for one in found if one is not None)
        return self._inferred[key]

    def _bytes(self, name: str) -> bytes | None:
        return self.values[name].tobytes() if name in self.values else None

    def _ask(self, node: NodeProto) -> list[TensorType | None]:
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain)
        except (KeyError, onnx.defs.SchemaError) as error:
            raise ValueError(f"{node.op_type} '{node.name}' is no operator of ONNX that this opset has") from error
        named = {name for name in node.input if name}
        types = {name: helper.make_tensor_type_proto(*self.types[name]) for name in named}
        data = {name: numpy_helper.from_array(self.values[name], name) for name in named if name in self.values}
        try:
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._opsets)
        except onnx.shape_inference.InferenceError as error:
            raise SizesRefused(f"{node.op_type} '{node.name}' does not take these sizes: {error}") from error
        return [_read_type(found.get(name)) if name else (0, ()) for name in node.output]

    def _evaluate(self, node: NodeProto) -> Iterable[Array]:
        """The node's outputs from its inputs' values; one evaluator serves all nodes alike."""
        names = [f"i{k}" if name else "" for k, name in enumerate(node.input)]
        key = node.domain, node.op_type, *names, *(a.SerializeToString() for a in node.attribute), len(node.output)
        if key not in self._evaluators:
            outputs = [f"o{k}" for k in range(len(node.output))]
            alike = helper.make_node(node.op_type, names, outputs, domain=node.domain)
            alike.attribute.extend(node.attribute)
            self._evaluators[key] = _evaluator(alike, self._opsets)
        feeds = {name: self.values[real] for name, real in zip(names, node.input, strict=True) if name}
        try:
            return [np.asarray(value) for value in self._evaluators[key].run(None, feeds)]
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise SizesRefused(f"{node.op_type} '{node.name}' does not take these sizes: {error}") from error


def _evaluator(node: NodeProto, opsets: Sequence[onnx.OperatorSetIdProto]) -> ReferenceEvaluator:
    inputs, outputs = ([onnx.ValueInfoProto(name=n) for n in names if n] for names in (node.input, node.output))
    return ReferenceEvaluator(
        helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets)
    )


def _is_small(kind: TensorType) -> bool:
    return math.prod(kind[1]) <= (MAX_FLOATS if kind[0] in FLOATS else MAX_INTEGERS)


def _read_type(proto: TypeProto | None) -> TensorType | None:
    tensor = proto.tensor_type if proto is not None else None
    if tensor is None or not tensor.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return None if None in dims else (tensor.elem_type, tuple(size for size in dims if size is not None))


def input_axes(graph: GraphProto) -> dict[str, tuple[Axis, ...]]:
    """The axes of a graph's inputs as the file has them; one without a name is a symbol of its own."""
    weights = {tensor.name for tensor in graph.initializer}
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{k}"
            for k, dim in enumerate(value.type.tensor_type.shape.dim)
        )
        for value in graph.input
        if value.name not in weights
    }


@dataclass(frozen=True, slots=True)
class Probes:
    """A graph at several sizes that tell its symbols apart."""

    dims: list[dict[str, int]]
    walked: list[Walked]

    def axes(self, names: Iterable[str]) -> dict[str, tuple[Axis, ...]]:
        """The axes of those of the named tensors that the symbols express."""
        found = {name: self.axes_of(name) for name in names}
        return {name: tuple(a for a in axes if a is not None) for name, axes in found.items() if None not in axes}

    def constants(self) -> dict[str, Array]:
        """What was followed and is the same at every size."""
        first, *others = [walked.values for walked in self.walked]
        return {name: value for name, value in first.items() if all(_equal(value, o.get(name)) for o in others)}

    def axes_of(self, name: str) -> list[Axis | None]:
        """The axes of a tensor; None for one that the symbols do not express."""
        shapes = [walked.types[name][1] for walked in self.walked]
        if len(set(map(len, shapes))) > 1:  # as of a Squeeze that drops whatever is 1
            return [None for _ in shapes[0]]
        return [self._axis(sizes) for sizes in zip(*shapes, strict=True)]

    def _axis(self, sizes: Sequence[int]) -> Axis | None:
        if len(set(sizes)) == 1:
            return sizes[0]
        for symbol, value in self.dims[0].items():
            divisor = value // max(1, sizes[0])
            if all(one[symbol] == size * divisor for one, size in zip(self.dims, sizes, strict=True)):
                return symbol if divisor == 1 else f"{symbol}/{divisor}"
        return None


def probe(model: onnx.ModelProto, inputs: Mapping[str, tuple[Axis, ...]]) -> Probes:
    """Walk the graph at sizes that its inputs' symbols can have. Raises ValueError as `tensor_types` does.

    Odd sizes first; where they do not fit, multiples of STEPS.
    """
    for step in STEPS:
        dims = _dims(_units(inputs, step))
        try:
            probes = Probes(dims[:3], [walk(model, _resolved(inputs, one)) for one in dims[:3]])
        except SizesRefused as error:
            refused = error
            continue
        for one in dims[3:]:
            with suppress(SizesRefused):  # the graph does not take these sizes, so nothing need hold there
                probes.walked.append(walk(model, _resolved(inputs, one)))
                probes.dims.append(one)
        return probes
    raise refused


def _resolved(inputs: Mapping[str, tuple[Axis, ...]], dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(resolve_axis(axis, dims) for axis in shape) for name, shape in inputs.items()}


def _units(inputs: Mapping[str, tuple[Axis, ...]], step: int) -> dict[str, int]:
    """What each symbol has to be a multiple of: all that divides it, times step."""
    units: dict[str, int] = {}
    for axis in (axis for shape in inputs.values() for axis in shape if isinstance(axis, str)):
        symbol, _, divisor = axis.partition("/")
        units[symbol] = math.lcm(units.get(symbol, step), step * int(divisor or 1))
    return units


def _dims(units: Mapping[str, int]) -> list[dict[str, int]]:
    """A value for each symbol at each probe, primes first, times its unit."""
    spare = [symbol for symbol in units if symbol not in PROBES]
    if len(spare) > len(SPARE_PROBES):
        raise ValueError(f"{len(spare)} unknown symbols in one graph: {', '.join(spare)}")
    sizes = {**PROBES, **dict(zip(spare, SPARE_PROBES, strict=False))}
    primes = [{name: sizes[name][k] * unit for name, unit in units.items()} for k in range(3)]
    more = zip(MORE_PROBES, MORE_SPARE_PROBES, strict=True)
    return primes + [{n: one.get(n, other) * unit for n, unit in units.items()} for one, other in more]


def _equal(value: Array, other: Array | None) -> bool:
    return other is not None and value.shape == other.shape and bool(np.array_equal(value, other))
