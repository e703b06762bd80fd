"""What a flavour needs rewritten in a graph before it parses it, and what it must be told of the graph's types.

Works on ONNX models in memory, whose weights may stay in external data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from engine.binding import Array
from engine.plan import Shapes
from engine.shapes import size_bytes

_UNIT, _ZERO = "zturbo_unit", "zturbo_zero"
_WIDE = "_zturbo_fp32"
_SMALL = 4096
"""Elements: shapes, and the scale and bias of a norm, are fewer; what is larger is a weight that nothing here reads."""


def read_model(raw: bytes, folder: Path) -> onnx.ModelProto:
    """Parse an ONNX file's bytes; of its external data, in folder, only the small tensors are read.

    ONNX's type inference gives up behind a Reshape whose shape it cannot see. Raises ValueError.
    """
    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise ValueError(f"not an ONNX model ({error})") from error
    for tensor in _tensors(model.graph):
        if external_data_helper.uses_external_data(tensor) and math.prod(tensor.dims) <= _SMALL:
            _load(tensor, folder)
    return model


def _load(tensor: TensorProto, folder: Path) -> None:
    external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _tensors(graph: onnx.GraphProto) -> Iterable[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def layer_norm_from_instance_norm(model: onnx.ModelProto) -> int:
    """Rewrite GroupNorm as TorchScript exports it, in place; returns how many.

    Reshape to (N, groups, L) → InstanceNormalization → … becomes LayerNormalization over the last axis with a scale
    and bias of length 1: the same sums, and no plugin on TensorRT 8.6 (exact in ONNX Runtime 1.31). An own scale or
    bias per group follows as Mul and Add. Other InstanceNormalizations stay as they are.
    """
    graph = model.graph
    arrays = _constants(graph)
    grouped = _reshaped_to_3d(graph, arrays)

    def own(node: NodeProto) -> list[NodeProto] | None:
        found = node.op_type == "InstanceNormalization" and node.input[0] in grouped
        return _layer_norm(node, arrays, graph) if found and all(name in arrays for name in node.input[1:]) else None

    return _replace(graph, own)


def layer_norm_in_float32(model: onnx.ModelProto) -> int:
    """Have every LayerNormalization of fp16 compute in fp32, in place; returns how many.

    Its input, scale and bias are cast, and its result is cast back.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    typed: Iterable[onnx.ValueInfoProto] = (*inferred.value_info, *inferred.output)
    halves = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    cast: set[str] = set()

    def wide(node: NodeProto) -> list[NodeProto] | None:
        if node.op_type != "LayerNormalization" or node.output[0] not in halves:
            return None
        made = NodeProto()
        made.CopyFrom(node)
        made.input[:], made.output[:] = ([f"{name}{_WIDE}" for name in names] for names in (node.input, node.output))
        pairs = [pair for pair in zip(node.input, made.input, strict=True) if pair[1] not in cast]
        cast.update(made.input)
        before = [helper.make_node("Cast", [name], [new], name=new, to=TensorProto.FLOAT) for name, new in pairs]
        after = helper.make_node("Cast", made.output, node.output, name=node.output[0], to=TensorProto.FLOAT16)
        return [*before, made, after]

    return _replace(model.graph, wide)


def _replace(graph: onnx.GraphProto, own: Callable[[NodeProto], list[NodeProto] | None]) -> int:
    """Put what `own` makes of a node in its place, in order; None leaves it. Returns how many were replaced."""
    found = [(node, own(node)) for node in graph.node]
    nodes = [one for node, made in found for one in ([node] if made is None else made)]
    del graph.node[:]
    graph.node.extend(nodes)
    return sum(made is not None for _, made in found)


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in found:  # a shared initializer, as TorchScript writes it
            found[node.output[0]] = found[node.input[0]]
    return found


def _reshaped_to_3d(graph: onnx.GraphProto, arrays: dict[str, TensorProto]) -> set[str]:
    """The tensors that are a Reshape to three axes, or came from one in an earlier part of the graph."""
    inputs = {value.name for value in graph.input if len(value.type.tensor_type.shape.dim) == 3}
    reshapes = (node for node in graph.node if node.op_type == "Reshape" and node.input[1] in arrays)
    return inputs | {node.output[0] for node in reshapes if list(arrays[node.input[1]].dims) == [3]}


def _layer_norm(node: NodeProto, arrays: dict[str, TensorProto], graph: onnx.GraphProto) -> list[NodeProto]:
    scale, bias = (numpy_helper.to_array(arrays[name]) for name in node.input[1:])
    unit, zero = (_ensure(graph, name, value, scale.dtype) for name, value in ((_UNIT, 1), (_ZERO, 0)))
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    steps = [("Mul", scale, 1), ("Add", bias, 0)]
    own = [(op, value) for op, value, neutral in steps if not np.all(value == neutral)]
    wires = [f"{node.output[0]}_{k}" for k in range(len(own))] + [node.output[0]]
    nodes = [
        helper.make_node(
            "LayerNormalization", [node.input[0], unit, zero], [wires[0]], name=node.name, axis=-1, epsilon=epsilon
        )
    ]
    for k, (op, value) in enumerate(own):
        name = f"{wires[k]}_{op}"
        graph.initializer.append(numpy_helper.from_array(value.reshape(-1, 1), name))
        nodes.append(helper.make_node(op, [wires[k], name], [wires[k + 1]], name=name))
    return nodes


def _ensure(graph: onnx.GraphProto, name: str, value: int, dtype: np.dtype[np.generic]) -> str:
    """The name of a constant of length 1, made where the graph has none of this type yet."""
    name = f"{name}_{dtype.name}"
    if name not in {tensor.name for tensor in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(np.full(1, value, dtype), name))
    return name


def float32_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """The names of the tensors that nodes compute in fp32, by ONNX's own type inference."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    typed: Iterable[onnx.ValueInfoProto] = (*inferred.value_info, *inferred.output)
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(output for node in model.graph.node for output in node.output if output in floats)


def fix_axes(model: onnx.ModelProto, profiles: Sequence[Shapes]) -> int:
    """Make the axes of a graph's inputs that have one size in all profiles constants, in place; returns how many.

    profiles: {input: (min, opt, max)} of each.
    """
    count = 0
    for value in model.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            sizes = {sizes[place] for shapes in profiles for sizes in shapes[value.name]}
            if len(sizes) == 1 and not dim.HasField("dim_value"):
                dim.dim_value = sizes.pop()
                count += 1
    return count


def wire_types(model: onnx.ModelProto) -> dict[str, str]:
    """The dtype of every input and output of a graph, as numpy names it."""
    values = (*model.graph.input, *model.graph.output)
    return {value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name for value in values}


def bfloat16_from_float16(model: onnx.ModelProto, folder: Path, keep: Collection[str], weights: Path) -> None:
    """Make every fp16 tensor of a graph bf16, in place.

    folder: of the external data, which is read a tensor at a time and written to the file weights, for the model to be
    parsed beside. Inputs and outputs among keep stay fp16 and are cast at the border; the others, what parts hand to
    each other, become fp32, which holds every bf16: fp16 does not, and numpy has no bf16 to allocate.
    """
    with weights.open("wb") as stream:
        for tensor in _tensors(model.graph):
            _to_bfloat16(tensor, folder, stream, weights.name)
    retype(model.graph, TensorProto.BFLOAT16, keep, "_bf16")


def _to_bfloat16(tensor: TensorProto, folder: Path, stream: IO[bytes], name: str) -> None:
    """One tensor's type and data; where the data lies outside, it goes to the stream, whatever its type."""
    half = tensor.data_type == TensorProto.FLOAT16
    if external_data_helper.uses_external_data(tensor):
        array = np.frombuffer(external_bytes(tensor, folder), helper.tensor_dtype_to_np_dtype(tensor.data_type))
        raw, offset = _bfloat16(array) if half else array.tobytes(), stream.tell()
        stream.write(raw)
        del tensor.external_data[:]
        for key, value in (("location", name), ("offset", str(offset)), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
    elif half:
        raw = _bfloat16(numpy_helper.to_array(tensor))
        tensor.ClearField("int32_data")
        tensor.raw_data = raw
    if half:
        tensor.data_type = TensorProto.BFLOAT16


def external_bytes(tensor: TensorProto, folder: Path) -> bytes:
    """A weight from its file, past the model: protobuf frees nothing of what it held before the model goes.

    Raises ValueError where it does not lie beside the graph, or its file is too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name, wanted = entries["location"], size_bytes(tensor)
    if Path(name).name != name:
        raise ValueError(f"weights of {tensor.name} in {name!r}, which is not beside the graph")
    with (folder / name).open("rb") as stream:
        stream.seek(int(entries.get("offset", 0)))
        raw: bytes = stream.read(wanted)
    if len(raw) != wanted:
        raise ValueError(f"weights of {tensor.name} in {name!r}: {len(raw)} of {wanted} bytes are there")
    return raw


def _bfloat16(half: Array) -> bytes:
    """The upper halves of the values in fp32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(half, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(half), 0x7FC0, rounded).astype("<u2").tobytes()


def retype(graph: onnx.GraphProto, kind: int, keep: Collection[str], suffix: str) -> None:
    """Have a graph's nodes compute in this type what they computed in fp16, in place; weights are left to the caller.

    Inputs and outputs among keep stay fp16 and are cast at the border, the others are fp32. suffix: of names inside.
    """
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = kind
    del graph.value_info[:]
    _cast_borders(graph, kind, keep, suffix)


def _cast_borders(graph: onnx.GraphProto, inside: int, keep: Collection[str], suffix: str) -> None:
    first, last, inner = list[NodeProto](), list[NodeProto](), dict[str, str]()
    for values, casts in ((graph.input, first), (graph.output, last)):
        for value in values:
            if value.type.tensor_type.elem_type != TensorProto.FLOAT16:
                continue
            inner[value.name] = f"{value.name}{suffix}"
            kind = TensorProto.FLOAT16 if value.name in keep else TensorProto.FLOAT
            value.type.tensor_type.elem_type = kind
            pair = [value.name, inner[value.name]]
            begin, end = (pair, inside) if casts is first else (pair[::-1], kind)
            casts.append(helper.make_node("Cast", begin[:1], begin[1:], name=f"{value.name}_border", to=end))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
