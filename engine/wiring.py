"""How the graphs of a bundle feed each other, and what the host feeds them: every mistake found before anything runs.

A wire is a name and has one buffer, so whoever writes or reads it must mean the same dtype and shape.
Knows neither files nor what runs a graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar, get_args

from engine.binding import SYMBOLS, Axis, Binding, DType, Graph, Stage

T = TypeVar("T")


class _Staged(Protocol):
    @property
    def stage(self) -> Stage: ...

    @property
    def only_with(self) -> tuple[str, ...]: ...


G = TypeVar("G", bound=_Staged)
Wire = tuple[DType, tuple[Axis, ...]]
IMAGES = "images"
"""The wire that the host reads: uint8, (samples, height, width, channels)."""
IMAGE = "image"
"""The host's wire that a picture to begin from comes in by."""
LORA = "lora"
"""The host's wire of low-rank weights, of a bundle that was exported to take them: (rows, rank, size)."""
PREVIEW = "preview"
"""The wire that the host reads between steps: uint8, (samples, height / factor, width / factor, 3); of a model with a
small decoder of its own (samples, height, width, 3)."""


def host_wires(channels: int, factor: int, table_rows: int, columns: int) -> dict[str, Wire]:
    """The wires that the host writes (runtime/batch.py); every other input must be some graph's output.

    `image` and `image_noise` only for a batch in which a sample has an image. `time_ids`: original height and width,
    the crop's top and left, target height and width, in pixels. A bundle may add `lora` (engine/schema.py).
    """
    latent: tuple[Axis, ...] = (f"height/{factor}", f"width/{factor}")
    return {
        "input_ids": ("int32", ("rows", "tokens")),
        "token_weights": ("float32", ("rows", "tokens")),
        "clip_skip": ("int32", ("rows",)),
        "time_ids": ("float32", ("rows", 6)),
        "table": ("float32", ("samples", table_rows, columns)),
        "noise": ("float32", ("samples", "draws", channels, *latent)),
        "guidance_scale": ("float32", ("samples",)),
        "cond_row": ("int32", ("samples",)),
        "uncond_row": ("int32", ("samples",)),
        "sample_of_row": ("int32", ("rows",)),
        "image": ("uint8", ("samples", "height", "width", 3)),
        "image_noise": ("float32", ("samples", channels, *latent)),
        "mask": ("float32", ("samples", 1, *latent)),
    }


def launched(graphs: Iterable[G], given: Collection[str]) -> list[G]:
    """The graphs that paint a picture where the host gives these wires: without previews, and without what needs more.

    The outputs of the others, if they are read, are zeros.
    """
    return [graph for graph in graphs if graph.stage != "preview" and set(graph.only_with) <= set(given)]


def swapped(graphs: Iterable[Graph], buffers: Mapping[str, T]) -> dict[str, T]:
    """The buffers by wire with each carried pair in the other's place, as every second step of a loop has them."""
    other = dict(buffers)
    for name, after in ((name, after) for graph in graphs for name, after in graph.carried.items()):
        other[name], other[after] = buffers[after], buffers[name]
    return other


def wiring_problem(graphs: Sequence[Graph], host: Mapping[str, Wire]) -> str | None:
    """What is wrong with how one variant's graphs feed each other, or None."""
    problem = _order_problem(graphs) or _hoist_problem(graphs) or _optional_problem(graphs, host)
    wires = dict(host)
    for graph in graphs:
        problem = problem or _graph_problem(graph, wires)
    made = [(binding.name, binding.dtype) for graph in graphs if graph.stage == "final" for binding in graph.outputs]
    return problem or (None if (IMAGES, "uint8") in made else f"no graph of stage 'final' makes {IMAGES!r} as uint8")


def _order_problem(graphs: Sequence[Graph]) -> str | None:
    """Graphs are listed in the order they run in, each once."""
    stages = [get_args(Stage).index(graph.stage) for graph in graphs]
    if stages != sorted(stages):
        return f"graphs out of order: {', '.join(f'{graph.name} ({graph.stage})' for graph in graphs)}"
    twice = [name for name, count in Counter(graph.name for graph in graphs).items() if count > 1]
    return f"graph {twice[0]!r} is listed twice" if twice else None


def _hoist_problem(graphs: Sequence[Graph]) -> str | None:
    """A prologue runs once, and was hoisted out of a graph of the loop."""
    loop = {graph.name for graph in graphs if graph.stage == "loop"}
    for graph in graphs:
        if graph.hoisted_from and (graph.stage != "once" or graph.hoisted_from not in loop):
            return f"graph {graph.name!r} ({graph.stage}): hoisted from {graph.hoisted_from!r}, no graph of the loop"
    return None


def _optional_problem(graphs: Sequence[Graph], host: Mapping[str, Wire]) -> str | None:
    """What may be left out is fed by the host alone, and is not carried: so it can run before all others, or never."""
    for graph in graphs:
        read = {binding.name for binding in graph.inputs}
        if graph.only_with and not (graph.stage == "once" and set(graph.only_with) <= read <= set(host)):
            return f"graph {graph.name!r} ({graph.stage}): only with wires that are not the host's, or not its own"
        if graph.optional and graph.carried:
            return f"graph {graph.name!r}: carried pairs in a graph that may be left out"
    return None


def _graph_problem(graph: Graph, wires: dict[str, Wire]) -> str | None:
    """Adds the graph's outputs to the wires that a later graph may read."""
    names = Counter(binding.name for binding in graph.bindings)
    if repeated := [name for name, count in names.items() if count > 1]:
        return f"graph {graph.name!r}: {repeated[0]!r} is bound twice; an output never aliases an input"
    for binding in graph.inputs:
        if binding.name not in wires:
            return f"graph {graph.name!r}: nothing feeds its input {binding.name!r}"
    for binding in graph.bindings:
        if problem := _binding_problem(graph, binding, wires.setdefault(binding.name, _wire(binding))):
            return problem
    return _carried_problem(graph, wires)


def _binding_problem(graph: Graph, binding: Binding, wire: Wire) -> str | None:
    subject = f"graph {graph.name!r}, binding {binding.name!r}"
    for axis in binding.shape:
        if not _is_axis(axis):
            return f"{subject}: unknown axis {axis!r}"
    if wire != _wire(binding):
        return f"{subject}: {_text(_wire(binding))} on a wire that is {_text(wire)}"
    return None


def _carried_problem(graph: Graph, wires: Mapping[str, Wire]) -> str | None:
    inputs, outputs = ({binding.name for binding in bindings} for bindings in (graph.inputs, graph.outputs))
    for source, target in graph.carried.items():
        if source not in inputs or target not in outputs or wires[source] != wires[target]:
            return f"graph {graph.name!r}: carried pair {source!r} → {target!r} does not match"
    return None


def _is_axis(axis: Axis) -> bool:
    """A positive integer, or a symbol that may be divided by one."""
    if isinstance(axis, int):
        return axis > 0
    symbol, slash, divisor = axis.partition("/")
    return symbol in SYMBOLS and (not slash or (divisor.isascii() and divisor.isdigit() and int(divisor[:9]) > 0))


def _wire(binding: Binding) -> Wire:
    return binding.dtype, binding.shape


def _text(wire: Wire) -> str:
    return f"{wire[0]} ({', '.join(map(str, wire[1]))})"
