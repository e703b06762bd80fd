"""Latent consistency models: Stable Diffusion distilled, its UNet reads the guidance scale as an embedding.

A sample takes one denoiser row however it is guided. A UNet that an LCM-LoRA was fused into reads none: that is sd.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import SourceError
from export.families import Model, ModelOptions
from export.families.sd import describe
from export.stable_diffusion import model_of, read_unet


def open_model(source: Path, options: ModelOptions) -> Model:
    """Read the configs of a folder. Raises SourceError where the UNet reads no guidance, else as `model_of` does."""
    width = read_unet(source).get("time_cond_proj_dim")
    if not isinstance(width, int) or isinstance(width, bool) or width < 4:
        raise SourceError(
            str(source / "unet"), actual=f"time_cond_proj_dim {width!r}",
            allowed="the width of a guidance embedding, 4 or more",
            remedy="Export it as a StableDiffusionPipeline where the UNet reads no guidance.",
        )  # fmt: skip
    return model_of(describe(source, "lcm", steps=4, guidance_scale=8.5), options)
