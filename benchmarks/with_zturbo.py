"""The contender zturbo: a bundle's pipeline on the onnxruntime backend, its launches timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.work import Settings, Turn, Work
from engine.binding import Binding, Dims, Graph
from engine.bundle import load_bundle
from runtime.backends import open_backend
from runtime.backends.base import Backend, BackendOptions, Buffer, Captures, Launch, in_order
from runtime.pipeline import Pipeline
from runtime.request import Request


class TimedBackend:
    """Another backend, with the wall seconds of every launch of the loop's graphs added up in `seconds`."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.seconds = inner, 0.0
        self.name, self.device, self.precision = inner.name, inner.device, inner.precision

    def allocate(self, binding: Binding, dims: Dims) -> Buffer:
        """The inner backend's buffer."""
        return self.inner.allocate(binding, dims)

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """The inner backend's launch, timed where the graph is one of the loop's."""
        launch = self.inner.bind(graph, buffers, dims)
        if graph.stage != "loop":
            return launch

        def timed() -> None:
            begun = time.perf_counter()
            launch()
            self.seconds += time.perf_counter() - begun

        return timed

    @property
    def captures(self) -> Captures:
        """The inner backend's."""
        return self.inner.captures

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """One after another: a capture would hide the launches that are timed."""
        return in_order(launches)

    def row_counts(self, height: int, width: int, tokens: int) -> Collection[int]:
        """The inner backend's."""
        return self.inner.row_counts(height, width, tokens)

    def mark(self) -> Callable[[], None]:
        """The inner backend's event."""
        return self.inner.mark()

    def close(self) -> None:
        """Close the inner backend."""
        self.inner.close()


class ZturboContender:
    """Paints with a pipeline that is loaded again for each setting. settings: threads."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.request = Request(
            prompt=work.prompt, height=work.height, width=work.width, num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale, scheduler=work.scheduler, latents=work.latents,
        )  # fmt: skip
        self._backend: TimedBackend | None = None
        self._pipeline: Pipeline | None = None

    def configure(self, settings: Settings) -> None:
        """Open the bundle with this many threads. Raises BundleError or BackendUnavailable."""
        if self._pipeline is not None:
            self._pipeline.close()
        options = BackendOptions(precision="fp32", threads=int(settings["threads"]))
        bundle = load_bundle(self.work.bundle)
        opened, _ = open_backend("onnxruntime", self.work.bundle, bundle, options)
        self._backend = TimedBackend(opened)
        # The same prompt again and again: what a cache keeps of it, the other contender computes.
        self._pipeline = Pipeline(self.work.bundle, bundle, self._backend, cache_mib=0)

    def paint(self) -> Turn:
        """One picture, from the prompt to a PIL image."""
        assert self._pipeline is not None
        assert self._backend is not None
        self._backend.seconds = 0.0
        begun = time.perf_counter()
        result = self._pipeline.generate(self.request)
        image: Any = result.images[0]
        seconds = time.perf_counter() - begun
        outside = result.seconds["loop"] - self._backend.seconds
        return Turn(seconds=seconds, picture=np.asarray(image), peak_bytes=0, stages=result.seconds, outside=outside)
