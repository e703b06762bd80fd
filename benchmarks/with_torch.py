"""The baseline: diffusers on the same weights, eager and compiled; each stage, the loop and the whole picture.

    python -m benchmarks.with_torch trt_models/emoji --mode eager compile --size 256 --out out/torch.json
    python -m benchmarks.with_torch trt_models/emoji --mode eager --precision fp32 --size 256 --paint out/reference

Stages are timed by CUDA events, the denoiser's of two rows; the loop and the picture are diffusers' own pipeline, wall
time. On a CPU all is wall time and only shows that it runs. --paint has the first mode paint the requests of
benchmarks.gpu instead, from the same noise, for its `compare`. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu
from benchmarks.machine import gpu_facts
from benchmarks.pairs import Summary
from benchmarks.report import finish
from benchmarks.stamps import Clock, HostClock, repeated_ms
from benchmarks.torch_pipe import compile_pipeline, open_pipeline, paint, stages, synchronize
from benchmarks.work import Work, work_from_bundle
from engine.errors import ZturboError
from runtime.noise import draws

MODES = ("eager", "compile")
NOT_TRIED = ("torch.compile's max-autotune", "compiled text encoders")
"""What may make the baseline faster, and is not in its figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code: 0, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    try:
        work = work_from_bundle(options.bundle, size_px=options.size, steps=options.steps)
        if options.paint is not None:
            found = paint_requests(work, options.precision, options.mode[0], options.requests, options.paint)
        else:
            found = measure(work, options.precision, options.mode, repeats=options.repeats, pictures=options.pictures)
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finish(found, options.out)
    return 0


def measure(work: Work, precision: str, modes: Sequence[str], *, repeats: int, pictures: int) -> dict[str, Any]:
    """{mode: its times}, and what they are of."""
    return {
        "benchmark": "torch", "bundle": work.bundle.resolve().name, "precision": precision,
        "width": work.width, "height": work.height, "steps": work.steps,
        "device": device_name(), "vae_precision": precision,
        "modes": {mode: _mode(work, precision, mode, repeats, pictures) for mode in modes},
        "not_tried": list(NOT_TRIED), "machine": gpu_facts("pytorch"),
    }  # fmt: skip


def _mode(work: Work, precision: str, mode: str, repeats: int, pictures: int) -> dict[str, Any]:
    """One mode from fresh weights. first_s: a first picture of two steps; of compile that is the compiler's time."""
    import torch

    pipe = _pipeline(work, precision, mode)
    begun = time.perf_counter()
    calls = stages(pipe, work)
    synchronize()
    first_s = time.perf_counter() - begun
    milliseconds = {
        name: repeated_ms(call, torch_clock(), synchronize, warmup=min(10, repeats), repeats=repeats)
        for name, call in calls.items()
    }
    seconds = [_picture(pipe, work) for _ in range(pictures + 2)][2:]  # the text encoder's first call is slow
    forward = dataclasses.asdict(Summary.of(milliseconds["denoiser"]))
    found = {
        "first_s": first_s, "forward_ms": forward,
        "conditioning_ms": dataclasses.asdict(Summary.of(milliseconds["conditioning"])),
        "decode_ms": dataclasses.asdict(Summary.of(milliseconds["decode"])),
        "loop_ms_per_step": dataclasses.asdict(Summary.of([1e3 * step for step, _ in seconds])),
        "picture_s": dataclasses.asdict(Summary.of([whole for _, whole in seconds])),
    }  # fmt: skip
    del pipe, calls
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _pipeline(work: Work, precision: str, mode: str) -> Any:
    """The pipeline in one of MODES; fp32 without TF32, which is what a reference has to be."""
    import torch

    torch.compiler.reset()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    pipe = open_pipeline(work, precision)
    if mode == "compile":
        compile_pipeline(pipe)
    return pipe


def paint_requests(work: Work, precision: str, mode: str, count: int, out: Path) -> dict[str, Any]:
    """Paint the first requests of benchmarks.gpu with diffusers; writes what its `run` writes, for its `compare`."""
    pipe = _pipeline(work, precision, mode)
    shape = work.latents.shape[1:]
    pictures = [
        paint(pipe, dataclasses.replace(
            work, prompt=prompt, steps=gpu.STEPS, guidance_scale=gpu.GUIDANCE, latents=draws(seed, 0, 1, shape),
        ))
        for seed, prompt in enumerate(gpu.PROMPTS[:count])
    ]  # fmt: skip
    found = {
        "benchmark": "gpu-run", "backend": f"diffusers-{mode}-{precision}", "device": device_name(),
        "steps": gpu.STEPS, "guidance_scale": gpu.GUIDANCE, "machine": gpu_facts("pytorch"),
    }  # fmt: skip
    gpu.save(out, np.concatenate(pictures), found)
    return found


def paint_with_diffusers(bundle: Path, precision: str, size_px: int | None, steps: int) -> dict[str, Any]:
    """Two pictures by diffusers' pipeline; seconds, and the most that torch's allocator held."""
    import torch

    work = work_from_bundle(bundle, size_px=size_px, steps=steps)
    pipe = open_pipeline(work, precision)
    seconds = [_picture(pipe, work)[1] for _ in range(2)]
    if not torch.cuda.is_available():
        return {"seconds": seconds}
    held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"seconds": seconds, "allocated_mib": held[0] / 2**20, "reserved_mib": held[1] / 2**20}


def _picture(pipe: Any, work: Work) -> tuple[float, float]:
    """Wall seconds of a step of the loop, and of the whole picture.

    A step: from the end of the first until the end of the last, over how many lie between, which the scheduler tells:
    some evaluate the UNet more often than they are asked to.
    """
    ends: list[float] = []

    def on_step(index: int) -> None:
        if index in {0, len(pipe.scheduler.timesteps) - 1}:
            synchronize()
        ends.append(time.perf_counter())

    begun = time.perf_counter()
    paint(pipe, work, on_step)
    synchronize()
    whole = time.perf_counter() - begun
    return (ends[-1] - ends[0]) / max(len(pipe.scheduler.timesteps) - 1, 1), whole


class CudaClock:
    """Stamps in torch's current stream."""

    def stamp(self) -> Any:
        """An event, recorded."""
        import torch

        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """The milliseconds between two events."""
        end.synchronize()
        return float(begin.elapsed_time(end))


def torch_clock() -> Clock:
    """The GPU's clock, or the host's where there is no GPU."""
    import torch

    return CudaClock() if torch.cuda.is_available() else HostClock()


def device_name() -> str:
    """The GPU's name, or cpu."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.with_torch", description="The PyTorch baseline")
    parser.add_argument("bundle", type=Path, help="its source's weights are used")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--size", type=int, help="pixels along each side; default: the bundle's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100, help="timed forwards")
    parser.add_argument("--pictures", type=int, default=5, help="timed pictures")
    parser.add_argument("--paint", type=Path, metavar="FOLDER", help="paint the requests of benchmarks.gpu into it")
    parser.add_argument("--requests", type=int, default=len(gpu.PROMPTS), help="how many of them")
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
