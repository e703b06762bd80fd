"""Where the time of a denoising loop goes: a stamp before and after each launch of its steps, beside the wall clock.

Knows no GPU: a clock is a backend that takes stamps, or the host's for one whose launches return when they are done.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.backends.base import Backend, Launch


class Clock(Protocol):
    """What takes stamps in the order of launches. The tensorrt backends are."""

    def stamp(self) -> Any:
        """The moment at which everything launched before is done."""

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """The milliseconds between two stamps, once the second is reached."""


class HostClock:
    """Stamps of the host's own clock."""

    def stamp(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def elapsed_ms(self, begin: float, end: float) -> float:
        """The milliseconds between two stamps."""
        return 1e3 * (end - begin)


@dataclass(frozen=True, slots=True)
class Turn:
    """One picture's loop, milliseconds.

    wall: from before its first launch until the last one is done, on the host. steps: by replay, from its begin to its
    end. between: from each end to the next begin. span: from the first begin to the last end.
    """

    wall: float
    steps: tuple[float, ...]
    between: tuple[float, ...]
    span: float

    @property
    def ratio(self) -> float:
        """Wall time over the time from each launch's begin to its end.

        1 is a host that does nothing between launches. What the host does within one counts on both sides: on an idle
        stream the begin is reached at once, and the GPU waits for what is launched after it.
        """
        return self.wall / sum(self.steps)


class StampedBackend:
    """Another backend; what it captures (the loop's step) is stamped before and after each launch."""

    def __init__(self, inner: Backend, clock: Clock) -> None:
        self.inner, self.clock = inner, clock
        self._stamps: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """The inner backend's launch, with a stamp on either side."""
        return stamped(self.inner.capture(launches), self.clock, self._stamps)

    def turn(self, wall_ms: float) -> Turn:
        """What was stamped since the last call, all of which must be done. Stamps are free to be used again."""
        stamps, elapsed = list(self._stamps), self.clock.elapsed_ms
        self._stamps.clear()
        assert stamps, "no step was captured"
        return Turn(
            wall=wall_ms,
            steps=tuple(elapsed(begin, end) for begin, end in stamps),
            between=tuple(elapsed(end, begin) for (_, end), (begin, _) in itertools.pairwise(stamps)),
            span=elapsed(stamps[0][0], stamps[-1][1]),
        )


def stamped(launch: Launch, clock: Clock, stamps: list[tuple[Any, Any]]) -> Launch:
    """A launch that adds its begin and end to stamps."""

    def timed() -> None:
        begin = clock.stamp()
        launch()
        stamps.append((begin, clock.stamp()))

    return timed


def repeated_ms(launch: Launch, clock: Clock, wait: Callable[[], None], *, warmup: int, repeats: int) -> list[float]:
    """The milliseconds of each of `repeats` launches in a row, after `warmup` others."""
    stamps: list[tuple[Any, Any]] = []
    for _ in range(warmup):
        launch()
    wait()
    timed = stamped(launch, clock, stamps)
    for _ in range(repeats):
        timed()
    wait()
    return [clock.elapsed_ms(begin, end) for begin, end in stamps]
