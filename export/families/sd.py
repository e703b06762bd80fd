"""Stable Diffusion 1.x and 2.x and SD-Turbo: one CLIP text encoder, a UNet with cross-attention, a VAE of 4 channels.

What the UNet predicts, noise or v, is the scheduler's to say, and its tables'.
"""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTextModel

from engine.errors import SourceError
from export.components import load_text
from export.families import Model, ModelOptions
from export.source import read_json
from export.stable_diffusion import Description, check_text, model_of, read_unet
from export.text_graph import Conditioning
from export.unsupported import check_width

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


def open_model(source: Path, options: ModelOptions) -> Model:
    """Read the configs of a folder. Raises SourceError where they describe another family, else as `model_of` does."""
    if (added := read_unet(source).get("addition_embed_type")) is not None:
        raise SourceError(
            str(source / "unet"), actual=f"a UNet with added embeddings ({added!r})", allowed="one of SD 1.x or 2.x",
            remedy="Name the pipeline's own class in model_index.json, StableDiffusionXLPipeline for SDXL.",
        )  # fmt: skip
    return model_of(describe(source, "sd", steps=20, guidance_scale=7.5), options)


def describe(source: Path, family: str, *, steps: int, guidance_scale: float) -> Description:
    """A model with one CLIP text encoder, read up to its last layer and through its final norm."""
    folder = source / "text_encoder"
    text = read_json(folder / "config.json")
    check_text(folder, text)
    check_width(source / "unet", read_unet(source), text.get("hidden_size"))
    chunk, layers = int(text["max_position_embeddings"]), int(text["num_hidden_layers"])
    return Description(
        family=family, source=source, components=COMPONENTS, tokenizers=("tokenizer",), text=text,
        max_clip_skip=layers - 1, pooled=0, steps=steps, guidance_scale=guidance_scale,
        conditioning=lambda dtype, fuse: Conditioning(
            load_text(CLIPTextModel, folder, dtype, fuse), chunk, layers - 1
        ),
    )  # fmt: skip
