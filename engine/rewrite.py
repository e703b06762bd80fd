"""What a flavour needs rewritten in a graph before it parses it, and what it must be told of the graph's types.

Works on ONNX models in memory, whose weights may stay in external data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto, external_data_helper, helper, numpy_helper

_UNIT, _ZERO = "zturbo_unit", "zturbo_zero"
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
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


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
    producers = {output: node for node in graph.node for output in node.output}
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.node:
        if node.op_type == "InstanceNormalization" and _is_3d(node, producers, arrays):
            nodes += _layer_norm(node, arrays, graph)
            count += 1
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in found:  # a shared initializer, as TorchScript writes it
            found[node.output[0]] = found[node.input[0]]
    return found


def _is_3d(node: NodeProto, producers: dict[str, NodeProto], arrays: dict[str, TensorProto]) -> bool:
    reshape = producers.get(node.input[0])
    if reshape is None or reshape.op_type != "Reshape":
        return False
    shape = arrays.get(reshape.input[1])
    return shape is not None and list(shape.dims) == [3] and all(name in arrays for name in node.input[1:])


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
