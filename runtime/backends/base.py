"""The seam between the pipeline and whatever runs a graph: a backend allocates, binds and launches.

Knows no graph by name and does no tensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from engine.binding import Array, Binding, Dims, Graph, Precision

Launch = Callable[[], None]
"""Starts one graph on the buffers it was bound to; the work may still run when it returns."""


def done() -> None:
    """The event of work that is over when its launch returns: nothing to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """What a caller may ask of a backend; None takes the backend's own default.

    precision: which variant of the bundle. device: the backend's word for it (`cpu`, `cuda`, `cuda:1`, a provider).
    threads: CPU threads inside one graph.
    """

    precision: Precision | None = None
    device: str | None = None
    threads: int | None = None


class Buffer(Protocol):
    """A tensor at a fixed address of the backend's device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The buffer's shape."""

    def write(self, array: Array) -> None:
        """Copy an array of the buffer's shape and dtype in."""

    def read(self) -> Array:
        """Wait for the device, then return a copy of the contents on the host."""


class Backend(Protocol):
    """What runs the graphs of one bundle. Made by a backend module's `open_backend(folder, bundle, options)`,
    which raises BackendUnavailable where this machine or this bundle cannot do it.

    precision: which variant of the bundle it runs. device: where, in words (`cpu`, `NVIDIA H200`).
    """

    name: str
    device: str
    precision: Precision

    def max_rows(self, height: int, width: int) -> int:
        """The most denoiser rows that one batch of pictures of this size, in pixels, may have."""

    def allocate(self, binding: Binding, dims: Dims) -> Buffer:
        """A buffer for a binding at these dims; the caller keeps it until `close` of the wiring."""

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """A launch of the graph on these buffers. Raises ShapeOutsideProfile where no plan covers dims."""

    def mark(self) -> Callable[[], None]:
        """An event behind all that was launched so far; calling it waits for that event."""

    def close(self) -> None:
        """Free everything; using the backend afterwards is an error of the caller's."""
