"""The self-test's pictures: painted by the real pipeline, timed, and compared with the bundle's recorded loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.binding import PlanPrecision
from engine.bundle import load_bundle, verified_path
from engine.compare import allowed_error, difference
from engine.wiring import IMAGES
from runtime.pipeline import Pipeline
from runtime.request import Request
from zturbo.selftest import Report, Wrong

Pixels = NDArray[np.uint8]


class Pictures:
    """Paints the request whose loop the bundle recorded. timed: the same with more steps."""

    def __init__(self, folder: Path, request: Request, timed: Request, report: Report) -> None:
        self._folder, self._request, self._timed, self._report = folder, request, timed, report
        self._plain: Pixels | None = None

    def plain(self, backend: str) -> str:
        """Launch by launch, twice. Raises ZturboError or Wrong."""
        with self._pipeline(backend, capture=False) as pipeline:
            first, self._plain = self._paint(pipeline), self._paint(pipeline)
            per_step = self._milliseconds(pipeline, "plain")
        if not np.array_equal(first, self._plain):
            raise Wrong("the same request gave two pictures")
        return f"{self._judged(self._plain, 'fp16')}; {per_step}"

    def captured(self, backend: str) -> str:
        """The loop as a CUDA graph: the bytes of plain launches. Raises ZturboError or Wrong."""
        with self._pipeline(backend, capture=True) as pipeline:
            pictures = [self._paint(pipeline) for _ in range(3)]
            per_step = self._milliseconds(pipeline, "captured")
            captures = pipeline.backend.captures
            if not captures.captured:
                raise Wrong(f"nothing is captured: {captures.reason}")
        assert self._plain is not None  # the step before
        if not all(np.array_equal(picture, self._plain) for picture in pictures):
            raise Wrong("captured, the picture is another than by plain launches")
        return f"byte-equal to plain launches; {per_step}"

    def once(self, backend: str, precision: PlanPrecision) -> str:
        """One picture against the reference. Raises ZturboError or Wrong."""
        with self._pipeline(backend, precision=precision) as pipeline:
            return self._judged(self._paint(pipeline), precision)

    def _pipeline(self, backend: str, **options: Any) -> Pipeline:
        return Pipeline.load(self._folder, backend, **options)

    def _paint(self, pipeline: Pipeline) -> Pixels:
        return pipeline.generate(self._request).arrays

    def _milliseconds(self, pipeline: Pipeline, how: str) -> str:
        """The best of three loops, per step."""
        steps = self._timed.num_inference_steps
        assert steps is not None
        best = min(pipeline.generate(self._timed).seconds["loop"] for _ in range(3)) / steps * 1000
        self._report.facts[f"{how}_ms_per_step"] = round(best, 3)
        return f"{best:.2f} ms a step {how}"

    def _judged(self, picture: Pixels, precision: PlanPrecision) -> str:
        bundle = load_bundle(self._folder)
        loop = bundle.reference.loop
        assert loop is not None  # the self-test's bundle has one
        allowed = allowed_error("uint8", precision, loop.fp16_error[IMAGES], loop=True)
        with np.load(verified_path(self._folder, bundle, bundle.reference.file)) as arrays:
            error, _ = difference(picture, arrays[f"loop/{IMAGES}"])
        words = f"relative error {error:.1e} against the reference, {allowed:.1e} allowed"
        if error > allowed:
            raise Wrong(words)
        return words
