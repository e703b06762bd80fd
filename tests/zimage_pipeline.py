"""diffusers' own ZImagePipeline of the tiny model, fed with a request's arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from diffusers.models.autoencoders import vae
from diffusers.pipelines.z_image import pipeline_z_image_img2img

from runtime.noise import draws, encoder_noise
from runtime.request import Request

CHANNELS = 16


class Theirs:
    """The pipeline in fp32."""

    def __init__(self, source: Path) -> None:
        self.pipeline = quiet(ZImagePipeline.from_pretrained(source, dtype=torch.float32))

    def latents(self, requests: list[Request]) -> np.ndarray:
        """The latents at the end of requests that share all but their prompts and arrays, painted as one batch."""
        return self._painted(requests, "latent")

    def pictures(self, requests: list[Request]) -> np.ndarray:
        """(pictures, H, W, 3) uint8."""
        return np.round(self._painted(requests, "np") * 255).astype(np.uint8)

    def _painted(self, requests: list[Request], output: str) -> np.ndarray:
        first = requests[0]
        prompts = [request.prompt for request in requests for _ in range(request.num_images)]
        negatives = [request.negative_prompt for request in requests for _ in range(request.num_images)]
        latents = np.concatenate([request.latents for request in requests if request.latents is not None])
        with torch.inference_mode():
            found = self.pipeline(
                prompt=prompts, negative_prompt=negatives, height=first.height, width=first.width,
                num_inference_steps=first.num_inference_steps, guidance_scale=first.guidance_scale,
                latents=torch.from_numpy(latents.copy()), output_type=output,
            ).images  # fmt: skip
        return found if isinstance(found, np.ndarray) else found.numpy()

    def latents_from_image(self, request: Request) -> np.ndarray:
        """The latents at the end of a request with an image and a seed, whose noise is what we draw for it."""
        own = {name: part for name, part in self.pipeline.components.items() if part is not None}
        pipeline = quiet(ZImageImg2ImgPipeline(**own))
        with our_noise(request), torch.inference_mode():
            return pipeline(
                prompt=request.prompt, image=request.image, strength=request.strength, height=request.height,
                width=request.width, num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale, output_type="latent",
            ).images.numpy()  # fmt: skip


@contextmanager
def our_noise(request: Request) -> Iterator[None]:
    """Within the block diffusers draws the encoder's noise and the first draw of a request's only picture as we do."""
    shape = CHANNELS, request.height // 8, request.width // 8
    noise = {vae: encoder_noise(request.seed, 0, shape), pipeline_z_image_img2img: draws(request.seed, 0, 1, shape)[0]}
    with pytest.MonkeyPatch.context() as patch:
        for module, array in noise.items():
            patch.setattr(module, "randn_tensor", lambda *_, array=array, **__: torch.from_numpy(array[None].copy()))
        yield


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
