"""A graph of the loop in two: what depends on the conditioning alone becomes a prologue, run once; exact.

Of a UNet these are the cross-attentions' K and V and the added embeddings. Works on models whose weights may stay in
external data. Does not know what the graph means: the lifetimes of its bindings say what the conditioning is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engine.binding import Array, Axis, Binding, DType
from engine.shapes import Probes, probe

DTYPES: dict[int, DType] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
"""What may cross: what computes, and never an index or a mask."""


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A graph as prologue and rest. wires: what the prologue makes and the rest reads beside inputs of the whole."""

    prologue: onnx.ModelProto
    rest: onnx.ModelProto
    wires: tuple[Binding, ...]


def hoist(model: onnx.ModelProto, inputs: Sequence[Binding], name: str = "prologue") -> Hoisted | None:
    """Move what depends on the inputs of lifetime per_row alone out of a graph; None where nothing does.

    inputs: the graph's. The wires are named `<name>_00` … in the order of the nodes that make them; each has rows as
    its first axis, and axes that the inputs' symbols express. Raises ValueError where the graph cannot be followed.
    """
    split = _Split(model, inputs)
    crossing = split.crossing()
    if not crossing:
        return None
    wires = {old: f"{name}_{k:02d}" for k, old in enumerate(crossing)}
    return Hoisted(split.prologue(wires), split.rest(wires), tuple(split.wire(old, new) for old, new in wires.items()))


class _Split:
    """What of a graph depends on what.

    early: tensors that follow from the conditioning's data and from nothing else but weights. late: those that follow
    from any other input, be it from its shape. The rest follows from the conditioning's shape, or from nothing.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Binding]) -> None:
        self._model = model
        self._conditioning = [binding.name for binding in inputs if binding.lifetime == "per_row"]
        self._others = [binding for binding in inputs if binding.lifetime != "per_row"]
        self._probes: Probes = probe(model, {binding.name: binding.shape for binding in inputs})
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants = {n: v for n, v in self._probes.constants().items() if n not in self._weights}
        self._nodes = [node for node in model.graph.node if not all(n in self._constants for n in node.output)]
        self._place = {name: k for k, node in enumerate(self._nodes) for name in node.output if name}
        self._kept_shapes: set[str] = set()
        self._early, self._late = self._dependences()

    def _dependences(self) -> tuple[set[str], set[str]]:
        early, late = set(self._conditioning), {binding.name for binding in self._others}
        for node in self._nodes:
            if not late.isdisjoint(node.input):
                late.update(node.output)
            elif node.op_type not in ("Shape", "Size") and not early.isdisjoint(node.input):
                early.update(node.output)
        return early, late

    def crossing(self) -> list[str]:
        """The tensors that the prologue makes for the rest, in the order of the nodes that make them.

        A shape of the conditioning that cannot be put together without it keeps its tensor in the rest; that shows
        once it is known what crosses.
        """
        while True:
            _, crossing = self._walk_rest()
            unknown = {
                tensor for tensor in self._early_shapes()
                if any(self._source(axis, crossing) is None for axis in self._probes.axes_of(tensor))
            } - self._kept_shapes  # fmt: skip
            if not unknown:
                return crossing
            self._kept_shapes |= unknown

    def _walk_rest(self) -> tuple[set[int], list[str]]:
        """The places of the nodes that stay, and what they read of the prologue."""
        outputs = {value.name for value in self._model.graph.output}
        todo, places, crossing = list(outputs), set[int](), set[str]()
        while todo:
            name = todo.pop()
            if name in self._early and name not in outputs and self._may_cross(name):
                crossing.add(name)
            elif (place := self._place.get(name)) is not None and place not in places:
                places.add(place)
                node = self._nodes[place]
                todo.extend([] if self._is_rebuilt(node) else node.input)
        return places, sorted(crossing, key=self._place.__getitem__)

    def _may_cross(self, name: str) -> bool:
        axes = self._probes.axes_of(name)
        return name in self._place and self._type(name) in DTYPES and None not in axes and axes[:1] == ["rows"]

    def _type(self, name: str) -> int:
        return self._probes.walked[0].types[name][0]

    def _early_shapes(self) -> set[str]:
        return {node.input[0] for node in self._nodes if self._is_early_shape(node)}

    def _is_early_shape(self, node: NodeProto) -> bool:
        return node.op_type == "Shape" and node.input[0] in self._early and not node.attribute

    def _is_rebuilt(self, node: NodeProto) -> bool:
        return self._is_early_shape(node) and node.input[0] not in self._kept_shapes

    def _source(self, axis: Axis | None, crossing: Iterable[str]) -> tuple[str, int] | int | None:
        """Where the rest finds an axis: an integer, or (one of its inputs, which of its axes)."""
        if axis is None or isinstance(axis, int):
            return axis
        found = [(binding.name, k) for binding in self._others for k, one in enumerate(binding.shape) if one == axis]
        found += [(name, k) for name in crossing for k, one in enumerate(self._probes.axes_of(name)) if one == axis]
        return found[0] if found else None

    def wire(self, old: str, new: str) -> Binding:
        """The binding of a tensor that crosses."""
        axes = tuple(axis for axis in self._probes.axes_of(old) if axis is not None)
        return Binding(name=new, dtype=DTYPES[self._type(old)], shape=axes, lifetime="per_row")

    def prologue(self, wires: dict[str, str]) -> onnx.ModelProto:
        """What makes the wires."""
        todo, places = list(wires), set[int]()
        while todo:
            place = self._place.get(todo.pop())
            if place is not None and place not in places:
                places.add(place)
                todo.extend(self._nodes[place].input)
        nodes = [self._nodes[place] for place in sorted(places)]
        return self._assemble("prologue", nodes, [*wires], wires, {})

    def rest(self, wires: dict[str, str]) -> onnx.ModelProto:
        """What stays, with the shapes of the conditioning put together from what the rest reads."""
        places, _ = self._walk_rest()
        nodes, constants = list[NodeProto](), dict[str, Array]()
        for place in sorted(places):
            node = self._nodes[place]
            nodes += self._rebuilt(node, wires, constants) if self._is_rebuilt(node) else [node]
        outputs = [value.name for value in self._model.graph.output]
        return self._assemble(self._model.graph.name, nodes, outputs, wires, constants)

    def _rebuilt(self, shape: NodeProto, wires: dict[str, str], constants: dict[str, Array]) -> list[NodeProto]:
        """A shape from the axes of other tensors: for each axis a Gather of a Shape, or an integer, then Concat."""
        nodes, parts, base = [], list[str](), shape.output[0]
        for k, axis in enumerate(self._probes.axes_of(shape.input[0])):
            source = self._source(axis, wires)
            part, index, whole = (f"{base}.{word}{k}" for word in ("axis", "index", "shape"))
            if isinstance(source, tuple):
                constants[index] = np.array([source[1]], np.int64)
                nodes += [
                    helper.make_node("Shape", [source[0]], [whole], name=f"{shape.name}.{k}"),
                    helper.make_node("Gather", [whole, index], [part], name=f"{shape.name}.{k}.Gather"),
                ]
            else:
                constants[part] = np.array([source], np.int64)
            parts.append(part)
        return [*nodes, helper.make_node("Concat", parts, [base], name=shape.name, axis=0)]

    def _assemble(
        self, name: str, nodes: Sequence[NodeProto], outputs: Sequence[str], wires: dict[str, str],
        constants: dict[str, Array],
    ) -> onnx.ModelProto:  # fmt: skip
        """A model of these nodes; its inputs are those of the whole that it uses, then wires that it does not make."""
        graph, known = self._model.graph, {**self._constants, **constants}
        used = {name for node in nodes for name in node.input} | set(outputs)
        made = {name for node in nodes for name in node.output}
        own = {value.name: value for value in (*graph.input, *graph.output)}
        tensors = [numpy_helper.from_array(value, one) for one, value in known.items() if one in used - made]
        inputs = [value for value in graph.input if value.name in used and value.name not in self._weights]
        inputs += [self._value_info(old, new) for old, new in wires.items() if old in used - made]
        results = [self._value_info(one, wires[one]) if one in wires else own[one] for one in outputs]
        weights = [tensor for one, tensor in self._weights.items() if one in used]
        own_nodes = [_renamed(node, wires) for node in nodes]
        assembled = helper.make_graph(own_nodes, name, inputs, results, weights + tensors)
        return helper.make_model(assembled, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)

    def _value_info(self, old: str, new: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(new, self._type(old), self.wire(old, new).shape)


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """The node with its tensors named so; a copy only where one is."""
    if not any(name in names for name in (*node.input, *node.output)):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy
