"""The graphs of a wiring that a picture can be painted without: bound when they are first needed, each by itself.

Those of stage `once` run where the host gives the wires that they name, before all others of it; where it does not,
what they make is zeros. Those of stage `preview` run between steps, where they are asked for. Knows no graph by name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from engine.binding import Dims, Graph
from runtime.backends.base import Backend, Buffer, Launch

Turn = dict[str, Buffer]
"""Buffers by wire, at one position of the carried pairs."""


class OptionalGraphs:
    """turns: the wiring's buffers at both positions; the wires that only these graphs have are added to them."""

    def __init__(self, backend: Backend, graphs: Sequence[Graph], turns: tuple[Turn, Turn], dims: Dims) -> None:
        self._backend, self._turns, self._dims = backend, turns, dict(dims)
        self._given = [graph for graph in graphs if graph.stage != "preview"]
        self._previews = [graph for graph in graphs if graph.stage == "preview"]
        self._launches: dict[str, tuple[Launch, ...]] = {}
        self._launched: list[Graph] = []
        self._blank: set[str] = set()

    def prepare(self, given: Collection[str]) -> None:
        """Bind the graphs that these wires suffice for, where they are not bound yet. Raises what bind raises."""
        self._launched = [graph for graph in self._given if set(graph.only_with) <= set(given)]
        for graph in self._launched:
            self._bind(graph)

    def blank(self, given: Collection[str]) -> None:
        """Write zeros for what the graphs make that these wires do not suffice for, unless they lie there already."""
        for graph in self._given:
            ready = set(graph.only_with) <= set(given)
            if not ready and graph.name not in self._blank:
                for binding in graph.outputs:
                    if binding.name in self._turns[0]:
                        self._turns[0][binding.name].write(np.zeros(binding.resolve(self._dims), binding.dtype))
                self._blank.add(graph.name)
            elif ready:
                self._blank.discard(graph.name)

    def launch_given(self) -> None:
        """Launch those that the last `prepare` found the wires for."""
        for graph in self._launched:
            self._launches[graph.name][0]()

    def launch_previews(self, turn: int) -> None:
        """Launch every preview, at a position of the carried pairs. Raises what bind raises."""
        for graph in self._previews:
            self._bind(graph)
            self._launches[graph.name][turn]()

    def makes(self, name: str) -> bool:
        """Whether one of the graphs makes this wire."""
        return any(binding.name == name for graph in (*self._given, *self._previews) for binding in graph.outputs)

    def _bind(self, graph: Graph) -> None:
        """Allocate what only this graph reads or makes, and bind it at each position it runs in."""
        if graph.name in self._launches:
            return
        own = {b.name: b for b in graph.bindings if b.name not in self._turns[0]}
        added = {name: self._backend.allocate(binding, self._dims) for name, binding in own.items()}
        turns = self._turns if graph.stage == "preview" else self._turns[:1]
        bound = tuple(self._backend.bind(graph, {**turn, **added}, self._dims) for turn in turns)
        for turn in self._turns:
            turn.update(added)
        self._launches[graph.name] = bound
