"""Reshapes to a shape that is computed from shapes become Reshapes to a constant, where ONNX's 0 and −1 say the same.

TorchScript reads every size of a `view` from the tensor: five nodes or more for each, which a builder has to follow and
to prove constant. Values stay to the bit. Knows no operation but Reshape.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from engine.cut import live
from engine.rewrite import read_model
from engine.shapes import input_axes, probe
from export.weights import drop_unread

_LOGGER = logging.getLogger("zturbo.export")
Sizes = Sequence[tuple[int, ...]]
"""Of one tensor, at each of several sizes of the graph's inputs."""


def fix_file(path: Path) -> int:
    """Fix the Reshapes of a graph that was just written; returns how many. Its weights stay where they are."""
    model = read_model(path.read_bytes(), path.parent)
    try:
        count = fix_reshapes(model)
    except ValueError as error:
        _LOGGER.warning("graph '%s' keeps its computed shapes, for it cannot be followed: %s", path.stem, error)
        return 0
    if count:
        path.write_bytes(model.SerializeToString())
    return count


def fix_reshapes(model: onnx.ModelProto) -> int:
    """Fix, in place, the Reshapes that can be, and leave out what computed their shapes; returns how many they were.

    Raises ValueError for a graph whose shapes depend on data.
    """
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    found = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in known]
    walked = probe(model, input_axes(graph)).walked if found else []
    count = 0
    for node in found:
        before, after = ([one.types[name][1] for one in walked] for name in (node.input[0], node.output[0]))
        shape = constant_shape(before, after)
        if shape is not None and not any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
            node.input[1] = f"{node.output[0]}_shape"
            graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), node.input[1]))
            count += 1
    if count:
        _prune(graph)
    return count


def constant_shape(before: Sizes, after: Sizes) -> list[int] | None:
    """What a Reshape takes for a shape: 0 keeps the size at its place, one −1 is what remains; None where that will
    not do. before, after: the sizes of its input and its result, place by place in the same order.
    """
    if len({len(sizes) for sizes in before}) > 1 or len({len(sizes) for sizes in after}) > 1:
        return None
    kept = list(zip(*before, strict=True))
    shape = []
    for place, sizes in enumerate(zip(*after, strict=True)):
        if 0 in sizes:
            return None
        if len(set(sizes)) == 1:
            shape.append(sizes[0])
        else:
            shape.append(0 if place < len(kept) and kept[place] == sizes else -1)
    return shape if shape.count(-1) <= 1 else None


def _prune(graph: onnx.GraphProto) -> None:
    """Leave out the nodes on which no output depends, and the weights that no node reads."""
    places = live(graph)
    nodes = [node for place, node in enumerate(graph.node) if place in places]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
