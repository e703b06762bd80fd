"""ONNX Runtime sessions by graph and number of parts, and how a batch is shared out to the CPU's threads.

A graph all of whose bindings lead with the same batch axis treats that axis's entries apart. On the CPU it runs in two
halves side by side: no operation is then left to one thread alone, and none waits for the other threads' share (two
rows on two cores: 1.2 times as fast as two threads in every operation; more cores were not measured). Halves and no
more: each number of parts is a session with its own copy of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.binding import Dims, Graph

BATCH_AXES = ("rows", "samples")
HALVES = 2


class Sessions:
    """The sessions of a variant; one is made when a graph first runs in a number of parts.

    threads: what all parts of a graph have together. open_session: makes one with a number of threads of its own.
    """

    def __init__(self, threads: int, open_session: Callable[[Graph, int], Any]) -> None:
        self.threads, self._open = threads, open_session
        self._made: dict[tuple[str, int], Any] = {}

    def get(self, graph: Graph, parts: int) -> Any:
        """The session that all of `parts` equal parts run on at once. Raises what open_session raises.

        A caller works along with the session's threads: with `parts` callers it needs parts − 1 fewer.
        """
        key = graph.name, parts
        if key not in self._made:
            self._made[key] = self._open(graph, max(1, self.threads - parts + 1))
        return self._made[key]

    def clear(self) -> None:
        """Drop them all."""
        self._made.clear()


def parts_of(graph: Graph, dims: Dims, threads: int) -> int:
    """2 where the graph's batch can be halved and there are threads for it, else 1."""
    first = {binding.shape[0] if binding.shape else None for binding in graph.bindings}
    axis = first.pop()
    whole = first or axis not in BATCH_AXES or threads < HALVES or dims[str(axis)] % HALVES
    return 1 if whole else HALVES


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once where the system tells (Linux)."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return os.cpu_count() or 1
    return max(1, len({_siblings(index) for index in affinity(0)}))


def _siblings(index: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{index}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(index)
