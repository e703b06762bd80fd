"""GPU memory: the most that one picture takes from an idle GPU, and what is left after loading and closing many times.

    python -m benchmarks.memory peak trt_models/emoji --backend tensorrt --size 256 --out out/memory.json
    python -m benchmarks.memory cycles trt_models/emoji --size 256 --out out/cycles.json

peak: a fresh process paints, this one reads the GPU's free memory meanwhile; so a CUDA context and everything that a
library keeps counts, for every contender alike. Nothing else may use the GPU. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import gpu_facts
from benchmarks.report import finish
from benchmarks.work import PROMPT
from engine.errors import ExecutionFailed, ZturboError
from engine.machine import free_gpu_memory
from runtime.pipeline import Pipeline
from runtime.request import Request

MIB = 2**20
ALLOWED_BYTES = 32 * MIB
"""Between the free memory before each load and after each close, after the first: what is asked."""
EVERY_S = 0.002
Free = Callable[[], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code: 0, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "paint":
            print(json.dumps(paint(options)))
            return 0
        found = peak(options) if options.command == "peak" else cycles_of(options)
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finish(found, options.out)
    return 0


def peak(options: argparse.Namespace) -> dict[str, Any]:
    """What a fresh process takes from the GPU at most, and of that what an idle CUDA context takes."""
    paint_words = [str(options.bundle), "--backend", options.backend, "--precision", options.precision]
    paint_words += ["--steps", str(options.steps), *(["--size", str(options.size)] if options.size else [])]
    free = free_here()
    context = lowest(free, lambda: _child([str(options.bundle), "--backend", "none"]))
    taken = lowest(free, lambda: _child(paint_words))
    return {
        "benchmark": "memory-peak", "backend": options.backend, "precision": options.precision, "size": options.size,
        "steps": options.steps, "peak_mib": mib(taken[0]), "context_mib": mib(context[0]), "samples": taken[1],
        "painted": taken[2], "machine": gpu_facts("pytorch" if options.backend == "diffusers" else options.backend),
    }  # fmt: skip


def lowest(free: Free, work: Callable[[], Any]) -> tuple[int, int, Any]:
    """The bytes by which free memory fell at most during work, how often it was read, and what work returned."""
    done = threading.Event()
    before = free()
    readings = [before]

    def watch() -> None:
        while not done.wait(EVERY_S):
            readings.append(free())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return before - min(readings), len(readings), result


def free_here() -> Free:
    """The free bytes of the first GPU. Raises BackendUnavailable."""
    from engine.cuda import Cuda

    cuda = Cuda()

    def free() -> int:
        found = free_gpu_memory(cuda)
        assert found is not None, "the GPU does not tell its free memory"
        return found

    return free


def _child(words: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "paint", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExecutionFailed(
            "benchmark, the painting process", actual=(done.stderr or f"code {done.returncode}").strip()[-600:],
            allowed="a picture", remedy="Run it by hand: " + " ".join(command),
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def paint(options: argparse.Namespace) -> dict[str, Any]:
    """In the fresh process: load, paint twice, stay a moment; what a library says of its own memory."""
    if options.backend == "none":
        free_here()()
        time.sleep(0.2)
        return {}
    if options.backend == "diffusers":
        from benchmarks.with_torch import paint_with_diffusers

        return paint_with_diffusers(options.bundle, options.precision, options.size, options.steps)
    with Pipeline.load(options.bundle, options.backend, precision=options.precision) as pipeline:
        seconds = [pipeline.generate(_request(options)).seconds["total"] for _ in range(2)]
        time.sleep(0.05)
    return {"seconds": seconds}


def _request(options: argparse.Namespace) -> Request:
    return Request(prompt=PROMPT, num_inference_steps=options.steps, height=options.size, width=options.size)


def cycles_of(options: argparse.Namespace) -> dict[str, Any]:
    """Load, one picture, close, many times in this process."""

    def once() -> None:
        with Pipeline.load(options.bundle, options.backend, precision=options.precision) as pipeline:
            pipeline.generate(_request(options))

    found = cycles(free_here(), once, options.count)
    return {
        "benchmark": "memory-cycles", "backend": options.backend, "precision": options.precision,
        "size": options.size, "steps": options.steps, **found, "machine": gpu_facts(options.backend),
    }  # fmt: skip


def cycles(free: Free, once: Callable[[], None], count: int) -> dict[str, Any]:
    """The free memory before and after each of `count` calls, once one call went before; do they stay the same?

    spread_mib: between the most and the least of all of them. lost_mib: from the first to the last.
    """
    untouched = free()
    once()
    rows = []
    for _ in range(count):
        before = free()
        once()
        rows.append((before, free()))
    readings = [reading for row in rows for reading in row]
    spread = max(readings) - min(readings)
    return {
        "count": count, "spread_mib": mib(spread), "lost_mib": mib(readings[0] - readings[-1]),
        "even": spread <= ALLOWED_BYTES, "first_mib": mib(untouched - readings[0]),
        "free_mib": [[mib(before), mib(after)] for before, after in rows],
    }  # fmt: skip


def mib(size_bytes: int) -> float:
    """Bytes in MiB."""
    return round(size_bytes / MIB, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="GPU memory")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("peak", "what one picture takes at most"), ("cycles", "what is left after loading and closing"),
        ("paint", "what peak starts"),
    ):  # fmt: skip
        one = commands.add_parser(name, help=words)
        one.add_argument("bundle", type=Path)
        one.add_argument("--backend", default="tensorrt", help="a backend of ours, or diffusers (its own pipeline)")
        one.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
        one.add_argument("--size", type=int, help="pixels along each side; default: the bundle's")
        one.add_argument("--steps", type=int, default=20)
        one.add_argument("--count", type=int, default=20, help="cycles")
        one.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
