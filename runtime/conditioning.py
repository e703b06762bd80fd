"""What text encoders and prologues made, kept for prompts that come again.

Which graphs those are is found in the bundle's own description: those of stage `once` that depend on the token ids
alone. Knows no graph by name, and not where a saved row lies.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.binding import Graph
from engine.errors import ExecutionFailed
from runtime.backends.base import SavedRow
from runtime.memory import Wiring

_LOGGER = logging.getLogger("zturbo.conditioning")
INPUT = "input_ids"
Key = tuple[bytes, tuple[tuple[str, int], ...]]


def conditioning_graphs(graphs: Sequence[Graph]) -> list[Graph]:
    """The graphs of stage `once` that depend on the token ids alone, directly or through each other, row by row."""
    known, found = {INPUT}, list[Graph]()
    for graph in graphs:
        by_row = all(binding.lifetime == "per_row" and binding.shape[:1] == ("rows",) for binding in graph.outputs)
        if graph.stage == "once" and by_row and {binding.name for binding in graph.inputs} <= known:
            found.append(graph)
            known |= {binding.name for binding in graph.outputs}
    return found


def kept_wires(graphs: Sequence[Graph], conditioning: Sequence[Graph]) -> list[str]:
    """The outputs of the conditioning graphs that another graph reads."""
    made = [binding.name for graph in conditioning for binding in graph.outputs]
    others = [graph for graph in graphs if graph not in conditioning]
    read = {binding.name for graph in others for binding in graph.inputs}
    return [name for name in made if name in read]


class ConditioningCache:
    """Rows by the ids that made them, at most limit_bytes of them; the least recently used goes first.

    A key is a row's token ids and the shape of its batch: what a batch of another shape computes differs in the last
    bits, and a picture must not depend on what was painted before. Of the shape only the number of draws is left out,
    which no profile asks after.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.size_bytes = limit_bytes, 0
        self._kept: OrderedDict[Key, list[SavedRow]] = OrderedDict()

    def condition(self, wiring: Wiring, input_ids: NDArray[np.int32]) -> bool:
        """Fill the wiring's conditioning, from what is kept where all its rows are; whether it was.

        input_ids: (rows, tokens), as they were written to the wiring. Raises ExecutionFailed.
        """
        shape = tuple(sorted((name, value) for name, value in wiring.dims.items() if name != "draws"))
        keys = [(row.tobytes(), shape) for row in input_ids]
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
