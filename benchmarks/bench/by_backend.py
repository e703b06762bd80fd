"""The contender that is a backend of ours: a bundle's pipeline, stages and steps stamped by the device's own clock.

Runs in a child process (benchmarks/bench/child.py), on Python 3.10 too; imports torch for the backend pytorch alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.bench.facts import library_versions, plan_facts, variant_bytes
from benchmarks.loop import alone, clock_of, dims_of
from benchmarks.stamps import Clock, HostClock, StampedBackend, stamped
from engine.binding import Dims, Graph, variant_of
from engine.bundle import load_bundle
from runtime.backends import open_backend
from runtime.backends.base import Backend, BackendOptions, Buffer, Launch
from runtime.pipeline import Pipeline
from runtime.request import Request

STAGES = {"once": "conditioning", "final": "decode"}
"""Stages of graphs that are stamped one by one, and what the pipeline calls the time they are part of."""


class StageBackend(StampedBackend):
    """A backend whose steps are stamped, and every graph outside of them."""

    def __init__(self, inner: Backend, clock: Clock) -> None:
        super().__init__(inner, clock)
        self._apart: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """The inner backend's launch; a step's are stamped together, where they are captured."""
        launch = self.inner.bind(graph, buffers, dims)
        return stamped(launch, self.clock, self._apart[graph.stage]) if graph.stage in STAGES else launch

    def device_ms(self) -> dict[str, float]:
        """Milliseconds from begin to end of what was stamped outside the loop since the last call, by stage."""
        elapsed = self.clock.elapsed_ms
        found = {
            STAGES[stage]: sum(elapsed(begin, end) for begin, end in stamps) for stage, stamps in self._apart.items()
        }
        for stamps in self._apart.values():
            stamps.clear()
        return found


class BackendContender:
    """settings: backend, precision, device, threads, capture; attention: `fused`, `unfused` (pytorch), `plain`."""

    def __init__(self) -> None:
        self._folder, self._size = Path(), cast("int | None", None)
        self._attention: Any = contextlib.nullcontext
        self._torch = False

    def open(self, *, bundle: str, size: int | None, settings: dict[str, Any]) -> dict[str, Any]:
        """Load the bundle. Raises BundleError or BackendUnavailable."""
        folder, name = Path(bundle), settings["backend"]
        loaded = load_bundle(folder)
        self._size, self._torch = size, name == "pytorch"
        if self._torch and settings.get("attention") == "unfused":
            from benchmarks.torch_pipe import unfused_attention

            self._attention = unfused_attention
        fused = None
        if name == "onnxruntime" and settings.get("attention") == "fused":
            from benchmarks.bench.fused import fused_copy

            folder, fused = fused_copy(folder, loaded, settings["precision"], dims_of(loaded, self._size))
            loaded = load_bundle(folder)
        options = BackendOptions(**{key: settings.get(key) for key in ("precision", "device", "threads")},
                                 capture=settings.get("capture", True))  # fmt: skip
        opened, _ = open_backend(name, folder, loaded, options)
        self._folder, self._bundle = folder, loaded
        self._backend = StageBackend(opened, self._clock(opened))
        # The same prompt again and again: what a cache keeps of it, other contenders compute.
        self._pipeline = Pipeline(folder, loaded, cast("Backend", self._backend), cache_mib=0)
        return {**self._facts(name), **({} if fused is None else {"attentions_fused": fused})}

    def paint(self, *, prompt: str, seed: int, steps: int, count: int, out: str | None) -> dict[str, Any]:
        """As Contender has it. Raises ShapeOutsideProfile or ExecutionFailed."""
        request = Request(
            prompt=prompt, seed=seed, num_inference_steps=steps, num_images=count, height=self._size, width=self._size
        )
        begun = time.perf_counter()
        with self._attention():
            result = self._pipeline.generate(request)
        images = result.images
        seconds = time.perf_counter() - begun
        turn = self._backend.turn(1e3 * result.seconds["loop"])
        if out is not None:
            np.save(out, np.stack([np.asarray(image) for image in images]))
        return {
            "seconds": seconds, "stages": {name: result.seconds[name] for name in ("conditioning", "loop", "decode")},
            "device_ms": {**self._backend.device_ms(), "loop": sum(turn.steps)}, "steps_ms": list(turn.steps),
        }  # fmt: skip

    def parts(self, *, repeats: int) -> dict[str, Any]:
        """{part: milliseconds of each launch}, one graph after another; `step` is what the loop captures.

        The prologue's work is the denoiser's own in torch, which computes it in every step.
        """
        with self._attention():
            found, step = alone(self._backend, self._bundle, self._size, warmup=max(2, repeats // 5), repeats=repeats)
        if self._torch:
            found = {name: times for name, times in found.items() if not self._graph(name).hoisted_from}
        return {"parts": {**found, "step": step}, "clock": self._clock_name()}

    def busy(self, *, prompt: str, steps: int) -> dict[str, Any]:
        """Milliseconds that the GPU's kernels took in a picture, where only torch's profiler can tell; else nothing."""
        if not self._torch:
            return {}
        from benchmarks.bench.torch_busy import kernels_ms

        def picture() -> None:
            self.paint(prompt=prompt, seed=0, steps=steps, count=1, out=None)

        return {"kernels_ms": kernels_ms(picture)}

    def _clock(self, backend: Backend) -> Clock:
        if backend.name == "pytorch" and backend.device.startswith("cuda"):
            from benchmarks.with_torch import torch_clock

            return torch_clock()
        return clock_of(backend)

    def _clock_name(self) -> str:
        return "host" if isinstance(self._backend.clock, HostClock) else "gpu"

    def _graph(self, name: str) -> Graph:
        graphs = self._bundle.graphs(variant_of(self._backend.precision))
        return next(graph for graph in graphs if graph.name == name)

    def _facts(self, name: str) -> dict[str, Any]:
        backend = self._backend
        facts = {"device": backend.device, "precision": backend.precision, "clock": self._clock_name()}
        built = plan_facts(self._folder, self._bundle, name, backend.precision, dims_of(self._bundle, self._size))
        if not built:
            built = {"weights_bytes": variant_bytes(self._bundle, variant_of(backend.precision))}
        return {**facts, **built, "versions": library_versions(name)}
