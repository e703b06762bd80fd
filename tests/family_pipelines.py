"""The tiny families' bundles, and diffusers' own pipelines of the same folders fed with a request's arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from export.solver import make_scheduler
from runtime.request import Request
from tests.conftest import CACHE, MAKING, ROOT, exported, is_newer
from tests.tiny_families import FAMILIES

NAMES = ("euler", "ddim", "dpmpp_2m", "euler_ancestral", "lcm")
KINDS = {"lcm": LatentConsistencyModelPipeline, "sd21": StableDiffusionPipeline, "sd-turbo": StableDiffusionPipeline}


def family_source(family: str) -> Path:
    """The family's model, saved once."""
    folder = CACHE / "models" / family
    makers = [ROOT / "tests" / "tiny_families.py", ROOT / "tests" / "tiny_model.py"]
    with MAKING:
        if not is_newer(folder / "model_index.json", makers):
            FAMILIES[family](folder)
    return folder


def family_bundle(family: str) -> Path:
    """Its bundle, fp32 and fp16."""
    return exported(family_source(family), schedulers=NAMES)


class Theirs:
    """diffusers' pipeline of a family in fp32."""

    def __init__(self, family: str) -> None:
        source, self.xl = family_source(family), family.startswith("sdxl")
        kind: Any = KINDS.get(family, StableDiffusionXLPipeline)
        self.pipeline = kind.from_pretrained(source, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
        self.embedded = self.pipeline.unet.config.time_cond_proj_dim is not None
        for name in ("text_encoder", "text_encoder_2"):
            text = getattr(self.pipeline, name, None)
            if text is not None and not hasattr(text, "text_model"):  # diffusers asks for it, transformers lacks it
                text.__dict__["text_model"] = text

    def latents(self, request: Request) -> np.ndarray:
        """The final latents of a request that brings its latents and noise: one image of it at a time."""
        assert request.latents is not None
        return np.concatenate([self._one(request, image) for image in range(request.num_images)])

    def _one(self, request: Request, image: int) -> np.ndarray:
        assert request.latents is not None
        self.pipeline.scheduler = make_scheduler(request.scheduler, self.config)
        drawn = () if request.noise is None else request.noise[image]
        bank = iter([*drawn, np.zeros_like(request.latents[0])])  # the last is for a step that takes none of it
        module = __import__(type(self.pipeline.scheduler).__module__, fromlist=["randn_tensor"])
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(bank)[None].copy()))
            return self.pipeline(
                latents=torch.from_numpy(request.latents[image : image + 1].copy()), prompt=request.prompt,
                height=request.height, width=request.width, num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale, clip_skip=request.clip_skip, output_type="latent",
                **self._of_its_kind(request),
            ).images.numpy()  # fmt: skip

    def _of_its_kind(self, request: Request) -> dict[str, Any]:
        if not self.xl:
            return {} if self.embedded else {"negative_prompt": request.negative_prompt}
        size = request.height, request.width
        return {
            "negative_prompt": request.negative_prompt or None,
            "original_size": request.original_size or size, "target_size": request.target_size or size,
            "crops_coords_top_left": request.crops_coords_top_left,
        }  # fmt: skip
