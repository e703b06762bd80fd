"""The denoising loop as a generator: one launch of the loop's graphs per step, the caller owns progress.

Knows neither graphs nor schedulers; the tables and the solver graph do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from engine.binding import Array
from engine.errors import OptionInvalid
from engine.wiring import PREVIEW
from runtime.backends.base import Backend
from runtime.memory import Wiring

AHEAD = 2
"""Steps that may be launched and not yet finished; so cancelling takes effect within two steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step that was launched: its index from 1, and how many the call makes in all its batches."""

    index: int
    total: int
    _wiring: Wiring = field(repr=False)
    _moment: int = field(repr=False)

    def latents(self) -> Array:
        """(samples, C, H/8, W/8) float32 after this step; waits for the device.

        Only on_step may ask, while the step is the last one launched. Raises OptionInvalid afterwards.
        """
        self._check("latents")
        return self._wiring.read("latents")

    def preview(self) -> Array:
        """(samples, H/8, W/8, 3) uint8: a rough small picture of the latents after this step; waits for the device.

        Noise and all, by one linear map; where the model brought a small decoder by that, (samples, H, W, 3). May be
        asked when latents() may. Raises OptionInvalid, also where the bundle has no such graph, or PlanError where
        TensorRT has no plan of it.
        """
        self._check(PREVIEW)
        if not self._wiring.has(PREVIEW):
            raise OptionInvalid(
                f"step {self.index}, preview", actual="a bundle without a graph for it", allowed="one that has it",
                remedy="Run `zturbo export` again.",
            )  # fmt: skip
        self._wiring.launch("preview")
        return self._wiring.read(PREVIEW)

    def _check(self, what: str) -> None:
        if self._wiring.moment != self._moment:
            raise OptionInvalid(
                f"step {self.index}, {what}", actual="a step that is over", allowed="the step that on_step was given",
                remedy="Read them within on_step, and keep the array.",
            )  # fmt: skip


def denoise(backend: Backend, wiring: Wiring, evaluations: int, before: int, total: int) -> Generator[Step]:
    """Launch the loop's graphs `evaluations` times; close the generator to stop at any step.

    before, total: steps of the call's earlier batches, and of all of them.
    """
    marks: deque[Callable[[], None]] = deque()
    try:
        for index in range(evaluations):
            wiring.launch("loop")
            marks.append(backend.mark())
            if len(marks) > AHEAD:
                marks.popleft()()
            yield Step(before + index + 1, total, wiring, wiring.moment)
    finally:  # also where the caller stopped: the next batch may write to these buffers
        wiring.moment += 1
        for mark in marks:
            mark()
