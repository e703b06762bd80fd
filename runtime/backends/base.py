"""The seam between the pipeline and whatever runs a graph: a backend allocates, binds and launches.

Knows no graph by name and does no tensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.binding import Array, Binding, Dims, Graph, PlanPrecision, Precision, variant_of
from engine.errors import BackendUnavailable

Launch = Callable[[], None]
"""Starts one graph on the buffers it was bound to; the work may still run when it returns."""


def done() -> None:
    """The event of work that is over when its launch returns: nothing to wait for."""


def asked_variant(backend: str, precision: PlanPrecision) -> Precision:
    """The variant that was asked of a backend which runs the graphs as they are. Raises BackendUnavailable."""
    variant = variant_of(precision)
    if precision != variant:
        raise BackendUnavailable(
            f"backend {backend}", actual=f"precision {precision}", allowed="fp32, fp16",
            remedy="Ask for fp16, or build plans of that precision for TensorRT.",
        )  # fmt: skip
    return variant


def in_order(launches: Sequence[Launch]) -> Launch:
    """The launches one after another: what a backend without capture does."""

    def launch() -> None:
        for one in launches:
            one()

    return launch


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """What a caller may ask of a backend; None takes the backend's own default.

    precision: which variant of the bundle, or what plans were built in. device: the backend's word for it (`cpu`,
    `cuda`, `cuda:1`, a provider). threads: CPU threads inside one graph. capture: False for plain launches where the
    backend could capture them.
    """

    precision: PlanPrecision | None = None
    device: str | None = None
    threads: int | None = None
    capture: bool = True


class Captures(Protocol):
    """What became of the launches that a backend was asked to capture."""

    @property
    def captured(self) -> int:
        """How many are replayed from a capture now."""

    @property
    def reason(self) -> str | None:
        """Why launches are plain; None where those that can be captured by now are."""


@dataclass(frozen=True, slots=True)
class NoCaptures:
    """The Captures of a backend that has none."""

    captured: int = 0
    reason: str | None = "this backend does not capture"


class SavedRow(Protocol):
    """A copy of one entry along a buffer's first axis, on the same device; its memory is freed with it."""

    @property
    def size_bytes(self) -> int:
        """What it occupies."""


@dataclass(frozen=True, slots=True, eq=False)
class HostRow:
    """A saved row in the host's memory, for buffers that lie there."""

    array: Array

    @property
    def size_bytes(self) -> int:
        """What it occupies."""
        return self.array.nbytes

    @classmethod
    def of(cls, array: Array, index: int) -> HostRow:
        """A copy of an array's entry."""
        return cls(np.array(array[index]))


class Buffer(Protocol):
    """A tensor at a fixed address of the backend's device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The buffer's shape."""

    def write(self, array: Array) -> None:
        """Copy an array of the buffer's shape and dtype in."""

    def read(self) -> Array:
        """Wait for the device, then return a copy of the contents on the host."""

    def save_row(self, index: int) -> SavedRow | None:
        """A copy of the entry at index of the first axis, taken in the order of launches; None where the backend
        could make one on the host only.
        """

    def load_row(self, index: int, saved: Any) -> None:
        """Put such a copy, of this buffer or of one of equal dtype and entry shape, at index; in launch order."""


class Backend(Protocol):
    """What runs the graphs of one bundle. Made by a backend module's `open_backend(folder, bundle, options)`,
    which raises BackendUnavailable where this machine or this bundle cannot do it.

    precision: which it computes in. device: where, in words (`cpu`, `NVIDIA H200`).
    """

    name: str
    device: str
    precision: PlanPrecision

    @property
    def captures(self) -> Captures:
        """How many launches are captured now, and why others are not."""

    def row_counts(self, height: int, width: int, tokens: int) -> Collection[int]:
        """The numbers of denoiser rows that one batch of pictures of this size in pixels, with prompts of this many
        tokens, may have: at least one.

        Not the most alone, which would say nothing of a profile's least rows, nor of the gap between two profiles.
        """

    def allocate(self, binding: Binding, dims: Dims) -> Buffer:
        """A buffer for a binding at these dims; the caller keeps it until `close` of the wiring."""

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """A launch of the graph on these buffers. Raises ShapeOutsideProfile where no plan covers dims, or PlanError
        where there is none of a graph that a picture can be painted without.
        """

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """One launch that does what these do in order. A backend that can captures them, once they ran plainly, and
        replays the capture from then on; where that fails it goes on plainly and logs the reason.
        """

    def mark(self) -> Callable[[], None]:
        """An event behind all that was launched so far; calling it waits for that event."""

    def close(self) -> None:
        """Free everything; using the backend afterwards is an error of the caller's."""
