"""A graph in consecutive parts, cut where one module ends and the next begins, so that each part is built by itself.

Parts are wired by tensor name: what one makes and a later one reads is an output of the first and an input of the
second, named as in the whole. Chains of constants and of shapes are copied into every part that needs them, so no
integer crosses. Works on models whose weights may stay in external data. Does not know what a part is built into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import onnx
from onnx import NodeProto, ValueInfoProto, helper

from engine.binding import Axis
from engine.plan import WHOLE, Part, Shapes
from engine.shapes import FLOATS, Probes, input_axes, probe, size_bytes, tensor_types

COSTS = {"Conv": 6, "ConvTranspose": 6, "MatMul": 3, "Gemm": 3}
"""What a node adds to a part's build beside 1 for any other: tactics are timed for these."""
BYTES_SHARE = 0.25
"""Of a step's cost, what its weights count for beside its node. SD 1.5's UNet in 2, 4, 7 and 10 parts: the heaviest
has 1.2, 1.9, 2.0 and 2.1 times its share of the bytes, the slowest at most 1.3 times its share of the nodes' costs. By
nodes alone up to 3.3 and 1.2 times; half by bytes, 1.8 and 1.75."""
CROSSING_COST = 0.05
"""Of the way to the next ideal cut: a tensor less to hand over is worth that much imbalance."""
DEPTH = 3
"""Components of a node's name that say which module it belongs to: `/unet/down_blocks.0/resnets.0/conv1/Conv`. More
where the first that is one of several comes later: `/second/text_model/encoder/layers.0/mlp/fc1/MatMul`."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The size of a graph. nodes: that compute, without constants and shapes. blocks: it can be cut into at most."""

    nodes: int
    blocks: int
    weights_bytes: int


def outline(model: onnx.ModelProto) -> Outline:
    """How large a graph is, and into how many parts it can be cut; one that cannot be followed is one block."""
    weights_bytes = sum(map(size_bytes, model.graph.initializer))
    try:
        layout = Layout(model)
    except ValueError:
        return Outline(nodes=len(model.graph.node), blocks=1, weights_bytes=weights_bytes)
    return Outline(nodes=len(layout.steps), blocks=len(layout.boundaries) + 1, weights_bytes=weights_bytes)


def part_of(model: onnx.ModelProto, part: Part) -> onnx.ModelProto:
    """One part of a graph as a model of its own; the whole graph is returned as it is.

    Raises ValueError where the graph cannot be followed or has fewer blocks than there are to be parts.
    """
    return model if part == WHOLE else Layout(model).part(part)


def part_shapes(model: onnx.ModelProto, part: Part, shapes: Shapes) -> Shapes:
    """(min, opt, max) of a part's inputs from those of the whole graph's. Raises ValueError as `part_of` does."""
    if part == WHOLE:
        return shapes
    return Layout(model).shapes(part, shapes)


class Layout:
    """A graph's nodes as cutting sees them: its steps in order, and what each needs.

    A step is a node that computes floats from the inputs' data and on whose result an output depends. Every other
    node (constants, shapes, integers) is copied to the steps that need it. needs: for each step the inputs and the
    results of other steps that it reads, itself or through such a copy. boundaries: the steps before which the graph
    may be cut.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model, self._axes = model, input_axes(model.graph)
        self._probes: Probes = probe(model, self._axes)
        self._types = self._probes.walked[0].types
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._place = {name: k for k, node in enumerate(model.graph.node) for name in node.output if name}
        self._roots: dict[str, frozenset[str]] = {}
        self.steps, self.needs = self._find_steps()
        self._made_by = {name: k for k, node in enumerate(self.steps) for name in node.output if name}
        self._homes = self._find_homes()
        paths = [block_of(node) for node in self.steps]
        whole = self._integers_alive()
        changes = enumerate(pairwise(paths), 1)
        self.boundaries = [k for k, (a, b) in changes if (a is None or a != b) and k not in whole]

    def _find_steps(self) -> tuple[list[NodeProto], list[frozenset[str]]]:
        """The steps and their needs; the roots of every other tensor on the way."""
        needed = live(self._model.graph)
        fed, made = set(self._axes), set(self._axes)
        steps, needs = [], []
        for k, node in enumerate(self._model.graph.node):
            reads = [name for name in node.input if name]
            roots = frozenset[str]().union(*({name} if name in made else self._roots.get(name, ()) for name in reads))
            follows = node.op_type not in ("Shape", "Size") and not fed.isdisjoint(reads)
            if follows:
                fed.update(node.output)
            if follows and any(self._is_float(name) for name in node.output if name):
                made.update(node.output)
                if k in needed:
                    steps.append(node)
                    needs.append(roots)
            else:
                self._roots |= dict.fromkeys(node.output, roots)
        return steps, needs

    def _find_homes(self) -> dict[str, int]:
        """For each output of the graph the step that it belongs to: its own, or the next of one that no step makes."""
        at = sorted(self._place[node.output[0]] for node in self.steps)
        homes = {}
        for value in self._model.graph.output:
            before = sum(place < self._place.get(value.name, 0) for place in at)
            homes[value.name] = self._made_by.get(value.name, min(before, max(0, len(at) - 1)))
        return homes

    def _integers_alive(self) -> set[int]:
        """The steps before which an integer that a step made, as TopK makes indices, is still to be read."""
        uses = [*enumerate(self.needs), *((at, self._roots.get(name, ())) for name, at in self._homes.items())]
        found = set[int]()
        for use, names in uses:
            made = [self._made_by[name] for name in names if name in self._made_by and not self._is_float(name)]
            found.update(range(min(made, default=use) + 1, use + 1))
        return found

    def _is_float(self, name: str) -> bool:
        return self._types[name][0] in FLOATS

    def part(self, part: Part) -> onnx.ModelProto:
        """A part as a model."""
        graph, inputs, outputs = self._model.graph, self.inputs(part), self._outputs(part)
        own = {value.name: value for value in (*graph.input, *graph.output)}
        nodes = self._nodes(part)
        used = {name for node in nodes for name in node.input} | set(outputs)
        made = helper.make_graph(
            nodes, f"{graph.name} {part[0]}/{part[1]}",
            [own.get(name) or self._value_info(name) for name in inputs],
            [own.get(name) or self._value_info(name) for name in outputs],
            [tensor for tensor in graph.initializer if tensor.name in used],
        )  # fmt: skip
        return helper.make_model(made, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)

    def shapes(self, part: Part, shapes: Shapes) -> Shapes:
        """(min, opt, max) of a part's inputs from those of the whole graph's."""
        probed = ({name: sizes[k] for name, sizes in shapes.items()} for k in range(3))
        low, opt, high = (tensor_types(self._model, sizes) for sizes in probed)
        return {name: (low[name][1], opt[name][1], high[name][1]) for name in self.inputs(part)}

    def inputs(self, part: Part) -> list[str]:
        """What a part reads: inputs of the graph in their order, then results of earlier parts in theirs."""
        begin, _ = self._range(part)
        needs = self._needs(part)
        earlier = [name for node in self.steps[:begin] for name in node.output if name in needs]
        return [name for name in self._axes if name in needs] + earlier

    def _outputs(self, part: Part) -> list[str]:
        """What a part makes: outputs of the graph that belong to it, then what later parts read."""
        begin, end = self._range(part)
        own = [name for name, home in self._homes.items() if begin <= home < end]
        later = frozenset[str]().union(*(self._needs((k, part[1])) for k in range(part[0] + 1, part[1] + 1)))
        made = [name for node in self.steps[begin:end] for name in node.output if name in later]
        return own + [name for name in made if name not in own]

    def _needs(self, part: Part) -> frozenset[str]:
        begin, end = self._range(part)
        own = [self._roots.get(name, frozenset()) for name, home in self._homes.items() if begin <= home < end]
        return frozenset[str]().union(*self.needs[begin:end], *own) - {
            name for node in self.steps[begin:end] for name in node.output
        }

    def _nodes(self, part: Part) -> list[NodeProto]:
        """A part's steps and the copies that it needs, in the order of the whole graph."""
        begin, end = self._range(part)
        stop = self._needs(part)
        own = [name for name, home in self._homes.items() if begin <= home < end]
        todo = [*own, *(name for node in self.steps[begin:end] for name in node.output)]
        places: set[int] = set()
        while todo:
            name = todo.pop()
            place = self._place.get(name)
            if place is not None and place not in places and name not in stop:
                places.add(place)
                todo.extend(self._producers[name].input)
        return [self._model.graph.node[place] for place in sorted(places)]

    def _range(self, part: Part) -> tuple[int, int]:
        """The steps of a part, [begin, end)."""
        index, count = part
        if not 1 <= index <= count or count > len(self.boundaries) + 1:
            raise ValueError(f"part {index} of {count} of a graph with {len(self.boundaries) + 1} blocks")
        cuts = [0, *self._cuts(count), len(self.steps)]
        return cuts[index - 1], cuts[index]

    def _cuts(self, count: int) -> list[int]:
        """The boundaries between so many parts: each near its ideal place by cost, where few tensors cross."""
        costs = list(accumulate(self._costs(), initial=0.0))
        crossing, share, cuts = self._crossing(), costs[-1] / count, list[int]()
        first = 0
        for k in range(1, count):
            last = len(self.boundaries) - (count - 1 - k)
            penalties = [
                (abs(costs[at] - k * share) / share + CROSSING_COST * crossing[at], index)
                for index, at in enumerate(self.boundaries[first:last], first)
            ]
            chosen = min(penalties)[1]
            cuts.append(self.boundaries[chosen])
            first = chosen + 1
        return cuts

    def _costs(self) -> list[float]:
        """What each step adds to a part, of its nodes' time and its weights' memory together; 1 in all."""
        sizes = {tensor.name: size_bytes(tensor) for tensor in self._model.graph.initializer}
        times = [COSTS.get(node.op_type, 1) for node in self.steps]
        weights = [sum(sizes.pop(name, 0) for name in node.input) for node in self.steps]
        whole, bulk = sum(times), sum(weights)
        share = BYTES_SHARE if bulk else 0.0
        return [
            (1 - share) * time / whole + share * size / max(bulk, 1)
            for time, size in zip(times, weights, strict=True)
        ]  # fmt: skip

    def _crossing(self) -> list[int]:
        """For each step how many results of steps before it are read by it or by later ones."""
        last = {name: k for k, needs in enumerate(self.needs) for name in needs if name in self._made_by}
        changes: Counter[int] = Counter()
        for name, use in last.items():
            changes[self._made_by[name] + 1] += 1
            changes[use + 1] -= 1
        return list(accumulate(changes[k] for k in range(len(self.steps) + 1)))

    def _value_info(self, name: str) -> ValueInfoProto:
        """A tensor that crosses; an axis that the graph's symbols do not express has no name."""
        axes: Sequence[Axis | None] = self._probes.axes_of(name)
        return helper.make_tensor_value_info(name, self._types[name][0], axes)


def live(graph: onnx.GraphProto) -> set[int]:
    """The places of the nodes that an output depends on."""
    needed, places = {value.name for value in graph.output}, set[int]()
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        if not needed.isdisjoint(node.output):
            places.add(place)
            needed.update(node.input)
    return places


def block_of(node: NodeProto) -> tuple[str, ...] | None:
    """The module that a node belongs to by its name; None where the name tells none."""
    *modules, _ = node.name.strip("/").split("/")
    numbered = next((k for k, module in enumerate(modules, 1) if module.rpartition(".")[2].isdecimal()), 0)
    return tuple(modules[: max(DEPTH, numbered)]) or None
