"""A module's graph traced without its weights, which are written behind it one tensor at a time.

torch's own export holds a model's weights three times: as parameters, folded into constants, and in the file's bytes.
Here the trace runs on torch's meta device, where nothing is computed, parameters become inputs of the graph, and each
is then an initializer again, transposed where a layer reads it so. Does not know what the module computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor, nn

from engine.binding import Array
from export.weights import Reader

ONNX = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.int64: TensorProto.INT64}


@contextmanager
def hollowed(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block the module is on the meta device; its parameters and buffers as they were, by path."""
    kept: dict[str, Tensor] = {}
    parts = module.named_modules()
    places = [(part, name, f"{path}.{name}".lstrip(".")) for path, part in parts for name in _own(part)]
    for part, name, path in places:
        value = kept[path] = getattr(part, name)
        empty = torch.empty_like(value, device="meta")
        setattr(part, name, nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty)
    try:
        yield kept
    finally:
        for part, name, path in places:
            setattr(part, name, kept[path])


def _own(part: nn.Module) -> list[str]:
    """The names of a module's own parameters and buffers."""
    named = *part.named_parameters(recurse=False), *part.named_buffers(recurse=False)
    return [name for name, _ in named]


def weights_back(model: onnx.ModelProto, weights: dict[str, Tensor]) -> Reader:
    """Make the inputs of a hollow graph that are weights initializers without values, and return what reads those.

    A weight that nothing but a Transpose reads is stored transposed, as torch's own export has it.
    """
    graph, nodes = model.graph, list[NodeProto]()
    sources = dict[str, tuple[Tensor, bool]]()
    for node in graph.node:
        if _turns(node) and node.input[0] in weights:
            sources[node.output[0]] = weights[node.input[0]], True
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.input}
    sources |= {name: (tensor, False) for name, tensor in weights.items() if name in read}
    inputs = [value for value in graph.input if value.name not in weights]
    for field, values in ((graph.node, nodes), (graph.input, inputs)):
        del field[:]
        field.extend(values)
    for name, (tensor, is_turned) in sources.items():
        shape = tensor.shape[::-1] if is_turned else tensor.shape
        graph.initializer.append(TensorProto(name=name, data_type=ONNX[tensor.dtype], dims=shape))

    def read_one(proto: TensorProto) -> Array | None:
        if proto.name not in sources:
            return None
        tensor, is_turned = sources[proto.name]
        return np.ascontiguousarray((tensor.t() if is_turned else tensor).detach().cpu().numpy())

    return read_one


def _turns(node: NodeProto) -> bool:
    """Whether a node transposes a matrix."""
    return node.op_type == "Transpose" and [list(one.ints) for one in node.attribute if one.name == "perm"] == [[1, 0]]
