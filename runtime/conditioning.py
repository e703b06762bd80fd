"""What text encoders and prologues made, kept for prompts that come again.

Which graphs those are is found in the bundle's own description: those of stage `once` that depend, row by row, on what
the host writes of a row (its lifetime says so: token ids, their weights, clip skip) and on nothing else. Knows no graph
and no wire by name, and not where a saved row lies.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from engine.binding import Array, Binding, Graph
from engine.errors import ExecutionFailed
from runtime.backends.base import SavedRow
from runtime.memory import Wiring

_LOGGER = logging.getLogger("zturbo.conditioning")
Key = tuple[bytes, tuple[tuple[str, int], ...]]


def conditioning_graphs(graphs: Sequence[Graph]) -> list[Graph]:
    """The graphs of stage `once` that depend on the host's rows alone, directly or through each other, row by row."""
    made = {binding.name for graph in graphs for binding in graph.outputs}
    inputs = [binding for graph in graphs for binding in graph.inputs if binding.name not in made]
    known, found = {binding.name for binding in inputs if _is_by_row(binding)}, list[Graph]()
    for graph in graphs:
        by_row = all(map(_is_by_row, graph.outputs))
        if graph.stage == "once" and by_row and {binding.name for binding in graph.inputs} <= known:
            found.append(graph)
            known |= {binding.name for binding in graph.outputs}
    return found


def _is_by_row(binding: Binding) -> bool:
    return binding.lifetime == "per_row" and binding.shape[:1] == ("rows",)


def read_wires(conditioning: Sequence[Graph]) -> list[str]:
    """What the conditioning graphs read that none of them makes: the host's rows."""
    made = {binding.name for graph in conditioning for binding in graph.outputs}
    read = dict.fromkeys(binding.name for graph in conditioning for binding in graph.inputs)
    return [name for name in read if name not in made]


def kept_wires(graphs: Sequence[Graph], conditioning: Sequence[Graph]) -> list[str]:
    """The outputs of the conditioning graphs that another graph reads."""
    made = [binding.name for graph in conditioning for binding in graph.outputs]
    others = [graph for graph in graphs if graph not in conditioning]
    read = {binding.name for graph in others for binding in graph.inputs}
    return [name for name in made if name in read]


class ConditioningCache:
    """Rows by what made them, at most limit_bytes of them; the least recently used goes first.

    A key is all that the host wrote of a row for these graphs, and the shape of its batch: what a batch of another
    shape computes differs in the last bits, and a picture must not depend on what was painted before. Of the shape only
    the number of draws is left out, which no profile asks after.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.size_bytes = limit_bytes, 0
        self._kept: OrderedDict[Key, list[SavedRow]] = OrderedDict()

    def condition(self, wiring: Wiring, arrays: Mapping[str, Array]) -> bool:
        """Fill the wiring's conditioning, from what is kept where all its rows are; whether it was.

        arrays: by wire, as they were written to the wiring. Raises ExecutionFailed.
        """
        shape = tuple(sorted((name, value) for name, value in wiring.dims.items() if name != "draws"))
        read = [arrays[name] for name in wiring.read_by_row]
        keys = [(b"".join(array[row].tobytes() for array in read), shape) for row in range(wiring.dims["rows"])]
        if wiring.conditioned and all(key in self._kept for key in keys):
            for index, key in enumerate(keys):
                self._kept.move_to_end(key)
                for name, saved in zip(wiring.conditioned, self._kept[key], strict=True):
                    wiring.buffers[name].load_row(index, saved)
            return True
        wiring.launch("conditioning")
        if self.limit_bytes and wiring.conditioned:
            self._save(wiring, keys)
        return False

    def clear(self) -> None:
        """Drop every row."""
        self._kept.clear()
        self.size_bytes = 0

    def _save(self, wiring: Wiring, keys: Sequence[Key]) -> None:
        """Keep each row once. A GPU without memory for it keeps none: the picture matters more."""
        for index, key in enumerate(keys):
            if key in self._kept:
                self._kept.move_to_end(key)
                continue
            try:
                saved = [wiring.buffers[name].save_row(index) for name in wiring.conditioned]
            except ExecutionFailed as error:
                self.clear()
                _LOGGER.warning("the conditioning of a prompt is not kept: %s", error.actual)
                return
            rows = [row for row in saved if row is not None]
            if len(rows) == len(saved):
                self._keep(key, rows)

    def _keep(self, key: Key, rows: list[SavedRow]) -> None:
        self._kept[key] = rows
        self.size_bytes += _size_bytes(rows)
        while self.size_bytes > self.limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.size_bytes -= _size_bytes(dropped)


def _size_bytes(rows: Sequence[SavedRow]) -> int:
    return sum(row.size_bytes for row in rows)
