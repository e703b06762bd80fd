"""An fp16 graph that computes in fp32, for what a TensorRT has no fp16 kernels for.

Works on ONNX models in memory, whose weights may stay in external data: they stay fp16 and are cast.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_WIDE = "_wide"


def float32_from_float16(model: onnx.ModelProto) -> None:
    """Have every fp16 tensor between a graph's inputs and outputs be fp32, in place; these and weights are cast."""
    graph = model.graph
    halves = [value.name for value in graph.input if _is_half(value)]
    halves += [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    outputs = [value.name for value in graph.output if _is_half(value)]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value))
        for names in (node.input, node.output):
            names[:] = [f"{name}{_WIDE}" if name in halves or name in outputs else name for name in names]
    before, after = (_casts(names, to) for names, to in ((halves, TensorProto.FLOAT), (outputs, TensorProto.FLOAT16)))
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _casts(names: Iterable[str], to: int) -> list[NodeProto]:
    """From each to its wide one, or for fp16 the other way."""
    pairs = ([name, f"{name}{_WIDE}"][:: 1 if to == TensorProto.FLOAT else -1] for name in names)
    return [helper.make_node("Cast", pair[:1], pair[1:], name=f"{'_to_'.join(pair)}", to=to) for pair in pairs]
