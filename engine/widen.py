"""An fp16 graph that computes in fp32, for what a TensorRT has no fp16 kernels for.

Works on ONNX models in memory, whose weights may stay in external data: they stay fp16 and are cast.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.rewrite import retype, wire_types

_WIDE = "_wide"


def float32_from_float16(model: onnx.ModelProto) -> None:
    """Have every fp16 tensor between a graph's inputs and outputs be fp32, in place; these and weights are cast."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value))
        node.input[:] = [f"{name}{_WIDE}" if name in weights else name for name in node.input]
    retype(graph, TensorProto.FLOAT, wire_types(model), _WIDE)
    casts = [
        helper.make_node("Cast", [name], [f"{name}{_WIDE}"], name=f"{name}{_WIDE}", to=TensorProto.FLOAT)
        for name in sorted(weights)
    ]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
