"""The contender diffusers: the real StableDiffusionPipeline on the same weights, latents and scheduler class."""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.work import Settings, Turn, Work


class DiffusersContender:
    """Paints with diffusers in fp32. settings: threads, channels_last, attention (`sdpa`, `eager`), inference_mode."""

    def __init__(self, work: Work) -> None:
        import diffusers
        import torch
        import transformers

        _quieten(diffusers.utils.logging, transformers.utils.logging)
        self.work, self._torch = work, torch
        self.pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            work.source, local_files_only=True, torch_dtype=torch.float32, safety_checker=None
        )
        self.pipe.scheduler = getattr(diffusers, work.scheduler_class).from_pretrained(
            work.source / "scheduler", local_files_only=True, **work.scheduler_settings
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.latents = torch.from_numpy(work.latents)
        self.mode: Any = contextlib.nullcontext

    def configure(self, settings: Settings) -> None:
        """Take threads, memory format, attention and autograd mode; the wait policy is the process's."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        torch = self._torch
        torch.set_num_threads(int(settings["threads"]))
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        for module in (self.pipe.unet, self.pipe.vae):
            module.to(memory_format=layout)
            module.set_attn_processor(AttnProcessor2_0() if settings["attention"] == "sdpa" else AttnProcessor())
        self.mode = torch.inference_mode if settings["inference_mode"] else contextlib.nullcontext

    def paint(self) -> Turn:
        """One picture, from the prompt to a PIL image."""
        work = self.work
        begun = time.perf_counter()
        with self.mode():
            image = self.pipe(
                work.prompt, height=work.height, width=work.width, num_inference_steps=work.steps,
                guidance_scale=work.guidance_scale, latents=self.latents,
            ).images[0]  # fmt: skip
        seconds = time.perf_counter() - begun
        return Turn(seconds=seconds, picture=np.asarray(image), peak_bytes=0)


def _quieten(*loggings: Any) -> None:
    """No warnings and progress bars between the benchmark's own lines; an error still raises."""
    warnings.simplefilter("ignore")
    for logging in loggings:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
