"""Products of one tensor with several weights → one product and a Split, exact up to the order of sums.

A prologue makes K and V of every cross-attention of the same prompt: SDXL's 140 products were 140 tactics to be timed
at a build, and as many launches. They become one for each block that engine/cut.py leaves whole (11 there), so that a
cut falls between them. Works on models whose weights lie beside the file. Does not know what is multiplied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engine.cut import block_of
from engine.shapes import size_bytes
from export.weights import drop_unread, raw_bytes

MOST_BYTES = 1 << 30
"""Of one product's weights: protobuf takes no tensor of 2 GB."""


def merge_siblings(model: onnx.ModelProto, folder: Path) -> int:
    """Merge, in place, MatMuls of the same tensor whose second factor is a matrix of weights; returns how many went.

    folder: where weights that are not in the model lie.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    groups = _groups(graph.node, weights)
    replaced: dict[str, list[NodeProto]] = {}
    for number, nodes in enumerate(groups):
        merged, made = _merged([weights[node.input[1]] for node in nodes], nodes, folder, f"siblings_{number}")
        graph.initializer.extend(made)
        replaced |= {node.output[0]: [] for node in nodes}
        replaced[nodes[0].output[0]] = merged
    kept = [one for node in graph.node for one in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread(graph)
    return sum(map(len, groups)) - len(groups)


def _groups(nodes: Sequence[NodeProto], weights: dict[str, TensorProto]) -> list[list[NodeProto]]:
    """MatMuls that share their first factor, its type and the block that a cut leaves whole, at least two each, of at
    most MOST_BYTES of weights.
    """
    found: dict[tuple[str, int, int, tuple[str, ...] | None], list[NodeProto]] = defaultdict(list)
    for node in nodes:
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) == 2:
            found[node.input[0], weight.data_type, weight.dims[0], block_of(node)].append(node)
    groups = []
    for siblings in found.values():
        group, total = list[NodeProto](), 0
        for node in siblings:
            size = size_bytes(weights[node.input[1]])
            if group and total + size > MOST_BYTES:
                groups.append(group)
                group, total = [], 0
            group.append(node)
            total += size
        groups.append(group)
    return [group for group in groups if len(group) > 1]


def _merged(
    factors: Sequence[TensorProto], nodes: Sequence[NodeProto], folder: Path, name: str
) -> tuple[list[NodeProto], list[TensorProto]]:
    """A MatMul and a Split in place of the nodes, and their tensors. The Split writes what the nodes wrote."""
    matrices = [np.frombuffer(raw_bytes(one, folder), _type(one)).reshape(tuple(one.dims)) for one in factors]
    weight = np.concatenate(matrices, axis=1)
    tensor = TensorProto(name=f"{name}.weight", data_type=factors[0].data_type, dims=weight.shape)
    tensor.raw_data = weight.tobytes()
    sizes = numpy_helper.from_array(np.array([one.dims[1] for one in factors], np.int64), f"{name}.sizes")
    first, whole = nodes[0], f"{name}.product"
    outputs = [node.output[0] for node in nodes]
    return [
        helper.make_node("MatMul", [first.input[0], tensor.name], [whole], name=first.name),
        helper.make_node("Split", [whole, sizes.name], outputs, name=f"{first.name}.Split", axis=-1),
    ], [tensor, sizes]


def _type(tensor: TensorProto) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
