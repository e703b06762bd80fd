"""What the host costs the denoising loop: wall time over the time of the captured steps themselves; each one alone.

    python -m benchmarks.loop trt_models/emoji --size 256 --out out/loop.json

Captured and plain launches take turns. A step is everything that the loop captures: denoiser and solver. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.machine import gpu_facts
from benchmarks.pairs import Summary
from benchmarks.report import finish
from benchmarks.stamps import Clock, HostClock, StampedBackend, Turn, repeated_ms
from benchmarks.work import PROMPT
from engine.binding import Binding, Dims, Graph, variant_of
from engine.bundle import Bundle, load_bundle
from engine.errors import ZturboError
from runtime.backends import open_backend
from runtime.backends.base import Backend, BackendOptions
from runtime.pipeline import Pipeline
from runtime.request import Request

WARMUP, REPEATS = 10, 100
"""Launches of what is measured alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code: 0, or 2 where it failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if len(options.steps) != len(options.pictures):
        parser.error(f"--steps {options.steps} and --pictures {options.pictures}: as many of the one as of the other")
    try:
        found = measure(
            options.bundle, options.backend, size_px=options.size, guidance_scale=options.guidance,
            runs=tuple(zip(options.steps, options.pictures, strict=True)), rounds=options.rounds,
        )  # fmt: skip
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finish(found, options.out)
    return 0


def measure(
    folder: Path, backend: str, *, size_px: int | None, guidance_scale: float, runs: Sequence[tuple[int, int]],
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the report says. runs: (steps, pictures), all of them in each round."""
    bundle = load_bundle(folder)
    kinds = {"captured": True, "plain": False}
    opened: dict[str, tuple[Pipeline, StampedBackend]] = {}
    turns: dict[str, dict[int, list[Turn]]] = {kind: {steps: [] for steps, _ in runs} for kind in kinds}
    try:
        for kind, capture in kinds.items():
            opened[kind] = stamped_pipeline(folder, bundle, backend, capture=capture)
            _warm_up(opened[kind], size_px, guidance_scale)
        for _ in range(rounds):
            for kind, pair in opened.items():
                for steps, pictures in runs:
                    request = _request(steps, size_px, guidance_scale)
                    turns[kind][steps] += [one_turn(*pair, request) for _ in range(pictures)]
        facts = _facts(opened["captured"][0], size_px)
        graphs, step = alone(opened["captured"][1], bundle, size_px)
        graphs_ms = {name: dataclasses.asdict(Summary.of(times)) for name, times in graphs.items()}
    finally:
        for pipeline, _ in opened.values():
            pipeline.close()
    report = {kind: {str(n): summary(found) for n, found in by_steps.items()} for kind, by_steps in turns.items()}
    return {
        "benchmark": "loop", **facts, "guidance_scale": guidance_scale, "rounds": rounds, **report,
        "graphs_ms": graphs_ms, "step_alone_ms": dataclasses.asdict(Summary.of(step)), "machine": gpu_facts(backend),
    }  # fmt: skip


def stamped_pipeline(folder: Path, bundle: Bundle, name: str, *, capture: bool) -> tuple[Pipeline, StampedBackend]:
    """A pipeline whose steps are stamped, and the backend that tells. Raises as Pipeline.load does."""
    opened, verdicts = open_backend(name, folder, bundle, BackendOptions(capture=capture))
    stamped = StampedBackend(opened, clock_of(opened))
    try:
        return Pipeline(folder, bundle, cast("Backend", stamped), verdicts), stamped
    except BaseException:
        opened.close()
        raise


def clock_of(backend: Backend) -> Clock:
    """The GPU's own clock where the backend has one, else the host's."""
    return cast("Clock", backend) if hasattr(backend, "stamp") else HostClock()


def one_turn(pipeline: Pipeline, backend: StampedBackend, request: Request) -> Turn:
    """One picture."""
    return backend.turn(1e3 * pipeline.generate(request).seconds["loop"])


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """What some pictures of equal step counts say; milliseconds.

    ratio: all wall time over all time from begin to end of a launch, and of each picture its own. host: the share of
    the wall time outside: between two of them, and before the first and after the last (edges). Neither sees a GPU that
    waits within a launch; wall_ms_per_step beside step_alone_ms does.
    """
    wall, busy = sum(turn.wall for turn in turns), sum(sum(turn.steps) for turn in turns)
    between, span = sum(sum(turn.between) for turn in turns), sum(turn.span for turn in turns)
    count = sum(len(turn.steps) for turn in turns)
    return {
        "pictures": len(turns), "steps": count, "ratio": wall / busy,
        "ratio_of_pictures": dataclasses.asdict(Summary.of([turn.ratio for turn in turns])),
        "wall_ms_per_step": dataclasses.asdict(Summary.of([turn.wall / len(turn.steps) for turn in turns])),
        "replay_ms": dataclasses.asdict(Summary.of([step for turn in turns for step in turn.steps])),
        "host": {"share": 1 - busy / wall, "between": between / wall, "edges": (wall - span) / wall},
    }  # fmt: skip


def alone(
    backend: StampedBackend, bundle: Bundle, size_px: int | None, *, warmup: int = WARMUP, repeats: int = REPEATS
) -> tuple[dict[str, list[float]], list[float]]:
    """Each graph that a picture needs by itself, {graph: ms of each launch}, and the loop's together, as its step is.

    Captured where the backend captures. On random inputs, one launch after another with no wait, so that the GPU never
    waits for the host. All of them are on the same buffers.
    """
    dims = dims_of(bundle, size_px)
    graphs = [graph for graph in bundle.graphs(variant_of(backend.precision)) if not graph.optional]
    bindings = {binding.name: binding for graph in graphs for binding in graph.bindings}
    buffers = {name: backend.allocate(binding, dims) for name, binding in bindings.items()}

    def wait() -> None:
        backend.mark()()

    def times(of: Sequence[Graph]) -> list[float]:
        rng = np.random.default_rng(0)
        for name in {binding.name: None for graph in of for binding in graph.inputs}:
            buffers[name].write(_values(bindings[name], dims, rng))
        launch = backend.inner.capture([backend.inner.bind(graph, buffers, dims) for graph in of])
        return repeated_ms(launch, backend.clock, wait, warmup=warmup, repeats=repeats)

    step = times([graph for graph in graphs if graph.stage == "loop"])
    return {graph.name: times([graph]) for graph in graphs}, step


def _values(binding: Binding, dims: Dims, rng: np.random.Generator) -> Any:
    """Standard normal values; zeros where others would not be valid: indices, ids, tables."""
    shape = binding.resolve(dims)
    if binding.dtype in ("int32", "uint8") or binding.name == "table":
        return np.zeros(shape, binding.dtype)
    values = np.full(shape, 500.0) if binding.name == "timestep" else rng.standard_normal(shape)
    return values.astype(binding.dtype)


def dims_of(bundle: Bundle, size_px: int | None) -> dict[str, int]:
    """One picture with the bundle's own guidance: two rows where that makes guided ones of it."""
    width, height = (bundle.defaults.width, bundle.defaults.height) if size_px is None else (size_px, size_px)
    tokens = bundle.tokenizer.lengths[0]
    guided = bundle.guidance == "classifier_free" and bundle.defaults.guidance_scale + bundle.guidance_offset > 1
    return {"rows": 1 + guided, "samples": 1, "width": width, "height": height, "draws": 1, "tokens": tokens}


def _warm_up(pair: tuple[Pipeline, StampedBackend], size_px: int | None, guidance_scale: float) -> None:
    for _ in range(3):
        one_turn(*pair, _request(20, size_px, guidance_scale))


def _request(steps: int, size_px: int | None, guidance_scale: float) -> Request:
    return Request(
        prompt=PROMPT, seed=0, num_inference_steps=steps, guidance_scale=guidance_scale, height=size_px, width=size_px
    )


def _facts(pipeline: Pipeline, size_px: int | None) -> dict[str, Any]:
    backend, dims = pipeline.backend, dims_of(pipeline.bundle, size_px)
    made_by = {"backend": backend.name, "device": backend.device, "precision": backend.precision}
    size = {name: dims[name] for name in ("width", "height", "rows")}
    return {"bundle": pipeline.bundle.name, **made_by, **size, "captures": backend.captures.captured}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description="What the host costs the loop")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--size", type=int, help="pixels along each side; default: the bundle's")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 100], help="step counts of pictures")
    parser.add_argument("--pictures", type=int, nargs="+", default=[10, 2], help="of each step count, in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
