"""The baseline: diffusers on the same weights, eager and compiled; the UNet's forward and the whole loop.

    python -m benchmarks.with_torch trt_models/emoji --mode eager compile --size 256 --out out/torch.json

The forward is of two rows in fp16, channels_last, scaled-dot-product attention, timed by CUDA events; the loop is
diffusers' own pipeline, wall time. On a CPU both are wall time and only show that it runs. The last line printed is one
JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import gpu_facts
from benchmarks.pairs import Summary
from benchmarks.report import finish
from benchmarks.stamps import Clock, HostClock, repeated_ms
from benchmarks.work import Work, work_from_bundle
from engine.errors import ZturboError

MODES = ("eager", "compile")
NOT_TRIED = ("torch.compile's max-autotune", "a compiled VAE and text encoder")
"""What may make the baseline faster, and is not in its figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code: 0, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    try:
        work = work_from_bundle(options.bundle, size_px=options.size, steps=options.steps)
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
        "device": device_name(), "modes": {mode: _mode(work, precision, mode, repeats, pictures) for mode in modes},
        "not_tried": list(NOT_TRIED), "machine": gpu_facts("pytorch"),
    }  # fmt: skip


def _mode(work: Work, precision: str, mode: str, repeats: int, pictures: int) -> dict[str, Any]:
    """One mode from fresh weights. first_s: the first forward; of compile that is the compiler's time."""
    import torch

    torch.compiler.reset()
    torch.backends.cudnn.benchmark = True
    pipe = open_pipeline(work, precision)
    if mode == "compile":
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead")
    forward = _forward(pipe.unet, work, precision)
    begun = time.perf_counter()
    forward()
    _synchronize()
    first_s = time.perf_counter() - begun
    forward_ms = repeated_ms(forward, torch_clock(), _synchronize, warmup=min(10, repeats), repeats=repeats)
    seconds = [_picture(pipe, work) for _ in range(pictures + 2)][2:]  # the text encoder's first call is slow
    found = {
        "first_s": first_s, "forward_ms": dataclasses.asdict(Summary.of(forward_ms)),
        "loop_ms_per_step": dataclasses.asdict(Summary.of([1e3 * step for step, _ in seconds])),
        "picture_s": dataclasses.asdict(Summary.of([whole for _, whole in seconds])),
    }  # fmt: skip
    del pipe, forward
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def open_pipeline(work: Work, precision: str) -> Any:
    """Diffusers' pipeline with the work's scheduler, its UNet channels_last; on the CPU where there is no GPU."""
    import diffusers
    import torch

    warnings.simplefilter("ignore")
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision]
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(
        work.source, local_files_only=True, torch_dtype=dtype, safety_checker=None
    )
    pipe.scheduler = getattr(diffusers, work.scheduler_class).from_pretrained(
        work.source / "scheduler", local_files_only=True, **work.scheduler_settings
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(_device())
    pipe.unet.to(memory_format=torch.channels_last)
    return pipe


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


def _forward(unet: Any, work: Work, precision: str) -> Callable[[], None]:
    """One call of the UNet on two rows of random values, with the shapes and types of the pipeline's: compiled once."""
    import torch

    compiler: Any = torch.compiler
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision]
    torch.manual_seed(0)
    config = unet.config
    sample = torch.randn(2, config.in_channels, work.height // 8, work.width // 8, dtype=dtype, device=_device())
    text = torch.randn(2, 77, config.cross_attention_dim, dtype=dtype, device=_device())
    timestep = torch.tensor(500, device=_device())

    def forward() -> None:
        with torch.inference_mode():
            if torch.cuda.is_available():
                compiler.cudagraph_mark_step_begin()
            unet(sample, timestep, text, return_dict=False)

    return forward


def _picture(pipe: Any, work: Work) -> tuple[float, float]:
    """Wall seconds of a step of the loop, and of the whole picture.

    A step: from the end of the first until the end of the last, over how many lie between, which the scheduler tells:
    some evaluate the UNet more often than they are asked to.
    """
    import torch

    ends: list[float] = []
    latents = torch.from_numpy(work.latents).to(device=_device(), dtype=pipe.unet.dtype)

    def on_step(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in {0, len(pipe.scheduler.timesteps) - 1}:
            _synchronize()
        ends.append(time.perf_counter())
        return tensors

    begun = time.perf_counter()
    with torch.inference_mode():
        pipe(
            work.prompt, height=work.height, width=work.width, num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale, callback_on_step_end=on_step, latents=latents,
        )  # fmt: skip
    _synchronize()
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


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.with_torch", description="The PyTorch baseline")
    parser.add_argument("bundle", type=Path, help="its source's weights are used")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--size", type=int, help="pixels along each side; default: the bundle's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100, help="timed forwards")
    parser.add_argument("--pictures", type=int, default=5, help="timed pictures")
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
