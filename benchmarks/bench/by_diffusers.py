"""The contender that a user would take instead: diffusers' own pipeline, eager or compiled, with its stages timed.

Runs in a child process (benchmarks/bench/child.py). Knows no family: stages begin and end where the pipeline encodes
the prompt and where it calls the VAE's decoder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import torch_pipe
from benchmarks.bench.torch_busy import kernels_ms
from benchmarks.machine import versions
from benchmarks.stamps import HostClock, repeated_ms
from benchmarks.with_torch import device_name, torch_clock
from benchmarks.work import Work, latents_of, work_from_bundle

PARTS = {"decode": "decoder"}
"""What benchmarks/torch_pipe.py calls a stage, and what our graph of it is called."""


class StageTimes:
    """Wall moments of a pipeline's call: where the loop begins, and where the decoder; waits for the GPU at both."""

    def __init__(self, pipe: Any) -> None:
        self.loop = self.decode = 0.0
        encode_prompt, decode = pipe.encode_prompt, pipe.vae.decode

        def encoding(*args: Any, **kwargs: Any) -> Any:
            found = encode_prompt(*args, **kwargs)
            torch_pipe.synchronize()
            self.loop = time.perf_counter()
            return found

        def decoding(*args: Any, **kwargs: Any) -> Any:
            torch_pipe.synchronize()
            self.decode = time.perf_counter()
            return decode(*args, **kwargs)

        self._encoding, self._decoding = encoding, decoding

    @contextlib.contextmanager
    def taken(self, pipe: Any) -> Iterator[None]:
        """Within the block the pipeline's calls are noted."""
        pipe.encode_prompt, pipe.vae.decode = self._encoding, self._decoding
        try:
            yield
        finally:
            del pipe.encode_prompt, pipe.vae.decode


class DiffusersContender:
    """settings: precision; compile: None or torch.compile's mode; attention: `fused`, `unfused`; threads of a CPU."""

    def __init__(self) -> None:
        self._work: Work
        self._pipe: Any
        self._attention: Any = contextlib.nullcontext

    def open(self, *, bundle: str, size: int | None, settings: dict[str, Any]) -> dict[str, Any]:
        """Load the pipeline; what is compiled is compiled by the first picture."""
        import torch

        _quieten()
        precision = settings["precision"]
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision != "fp32"  # a reference has to be float32 throughout
        if settings.get("threads"):
            torch.set_num_threads(settings["threads"])
        if settings["attention"] == "unfused":
            self._attention = torch_pipe.unfused_attention
        self._work = work_from_bundle(Path(bundle), size_px=size, steps=1)
        self._pipe = torch_pipe.open_pipeline(self._work, precision)
        modules = [one for one in self._pipe.components.values() if isinstance(one, torch.nn.Module)]
        weights = sum(tensor.nbytes for one in modules for tensor in one.parameters())
        mode = settings["compile"]
        if mode is not None:
            torch_pipe.compile_pipeline(self._pipe, None if mode == "default" else mode)
        self._stages = StageTimes(self._pipe)
        clock = "host" if isinstance(torch_clock(), HostClock) else "gpu"
        facts = {"device": device_name(), "precision": precision, "weights_bytes": weights, "clock": clock}
        return {**facts, "threads": torch.get_num_threads(), "versions": versions()}

    def paint(self, *, prompt: str, seed: int, steps: int, count: int, out: str | None) -> dict[str, Any]:
        """As Contender has it; device_ms and steps_ms are left to `busy`: events would count the waiting too."""
        work = self._asked(prompt, seed, steps, count)
        begun = time.perf_counter()
        with self._attention(), self._stages.taken(self._pipe):
            images = torch_pipe.paint(self._pipe, work)
        ended = time.perf_counter()
        if out is not None:
            np.save(out, images)
        at_loop, at_decode = self._stages.loop, self._stages.decode
        return {
            "seconds": ended - begun,
            "stages": {"conditioning": at_loop - begun, "loop": at_decode - at_loop, "decode": ended - at_decode},
            "device_ms": {}, "steps_ms": [],
        }  # fmt: skip

    def parts(self, *, repeats: int) -> dict[str, Any]:
        """{part: milliseconds of each call}: a denoiser's call has the rows of one picture."""
        with self._attention():
            calls = torch_pipe.stages(self._pipe, self._asked(self._work.prompt, 0, 2, 1))
            found = {
                PARTS.get(name, name): repeated_ms(
                    call, torch_clock(), torch_pipe.synchronize, warmup=max(2, repeats // 5), repeats=repeats
                )
                for name, call in calls.items()
            }
        return {"parts": found, "clock": "host" if isinstance(torch_clock(), HostClock) else "gpu"}

    def busy(self, *, prompt: str, steps: int) -> dict[str, Any]:
        """Milliseconds that the GPU's kernels took in a picture, by torch's profiler; None where it cannot tell."""

        def picture() -> None:
            self.paint(prompt=prompt, seed=0, steps=steps, count=1, out=None)

        return {"kernels_ms": kernels_ms(picture)}

    def _asked(self, prompt: str, seed: int, steps: int, count: int) -> Work:
        latents = latents_of(seed, count, self._work.latents.shape[1:])
        return dataclasses.replace(self._work, prompt=prompt, steps=steps, latents=latents)


def _quieten() -> None:
    """No warnings and progress bars of theirs; an error still raises."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
