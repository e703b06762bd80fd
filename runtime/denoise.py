"""The denoising loop as a generator: one launch of the loop's graphs per step, the caller owns progress.

Knows neither graphs nor schedulers; the tables and the solver graph do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.binding import Array
from runtime.backends.base import Backend
from runtime.memory import Wiring

AHEAD = 2
"""Steps that may be launched and not yet finished; so cancelling takes effect within two steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step that was launched: its index from 1, and how many there are."""

    index: int
    total: int
    _wiring: Wiring = field(repr=False)

    def latents(self) -> Array:
        """(samples, C, H/8, W/8) float32 after this step; waits for the device. Valid until the next step."""
        return self._wiring.read("latents", self.index)


def denoise(backend: Backend, wiring: Wiring, evaluations: int) -> Iterator[Step]:
    """Launch the loop's graphs `evaluations` times; the caller may stop at any step by not asking for the next."""
    marks: deque[Callable[[], None]] = deque()
    try:
        for index in range(evaluations):
            wiring.launch("loop", index)
            marks.append(backend.mark())
            if len(marks) > AHEAD:
                marks.popleft()()
            yield Step(index + 1, evaluations, wiring)
    finally:  # also where the caller stopped: the next batch may write to these buffers
        for mark in marks:
            mark()
