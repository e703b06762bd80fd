"""ONNX Runtime sessions by graph and thread count, and how a batch is shared out to the CPU's threads.

A graph all of whose bindings lead with the same batch axis treats that axis's entries apart. On the CPU it runs in
equal parts side by side, each on its share of the threads: no operation is then left to one thread alone, and none
waits for the other threads' share (two rows on two cores: 1.2 times as fast as two threads in every operation).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.binding import Dims, Graph

BATCH_AXES = ("rows", "samples")


class Sessions:
    """The sessions of a variant; one is made when a graph first runs with a number of threads.

    threads: what all parts of a graph have together. open_session: makes one from a file and a number of threads.
    """

    def __init__(self, paths: Mapping[str, Path], threads: int, open_session: Callable[[Path, int], Any]) -> None:
        self.threads, self._paths, self._open = threads, dict(paths), open_session
        self._made: dict[tuple[str, int], Any] = {}

    def get(self, graph: Graph, parts: int) -> Any:
        """The session for one of `parts` equal parts. Raises what open_session raises."""
        key = graph.name, max(1, self.threads // parts)
        if key not in self._made:
            self._made[key] = self._open(self._paths[graph.name], key[1])
        return self._made[key]

    def clear(self) -> None:
        """Drop them all."""
        self._made.clear()


def parts_of(graph: Graph, dims: Dims, threads: int) -> int:
    """Into how many equal parts a batch is cut: as many as share the threads equally; 1 where a graph cannot be."""
    first = {binding.shape[0] if binding.shape else None for binding in graph.bindings}
    axis = first.pop()
    return 1 if first or axis not in BATCH_AXES else math.gcd(dims[str(axis)], threads)


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
