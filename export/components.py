"""A model's components: loaded from safetensors on this disk, counted, and checked against each other.

Does not know what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from engine.errors import SourceError
from export.pictures import TinyPreview
from export.source import read_json
from export.strided import pad_in_convolutions
from export.untrusted import open_component, weights_of
from export.vae_fold import make_fp16_safe

LARGE = 10**9
"""Parameters of a denoiser from which on a model is large: its fp32 graphs are written on request only."""
DECODERS = ("AutoencoderKL",)
Fuse = Callable[[nn.Module, str], None]
"""Adds LoRAs to the weights of a component, which is named by its folder."""


def load(kind: Any, folder: Path, dtype: torch.dtype, fuse: Fuse | None = None) -> Any:
    """One component in eval mode, from safetensors on this disk only.

    Raises SourceError, as `open_component` does, or LoraInvalid where fuse does.
    """
    if fuse is None:
        return open_component(kind, folder, dtype)
    module = open_component(kind, folder, torch.float32)
    fuse(module, folder.name)
    return nn.Module.to(module, dtype)  # diffusers' own warns of modules to keep in float32, and names none


def load_text(kind: Any, folder: Path, dtype: torch.dtype, fuse: Fuse | None = None) -> Any:
    """A text encoder whose attention is written out: the fused one gives LayerNormalization a float input in fp16."""
    encoder = load(kind, folder, dtype, fuse)
    encoder.set_attn_implementation("eager")
    return encoder


def load_vae(source: Path, dtype: torch.dtype) -> Any:
    """The VAE, so that fp16 holds what it computes; in fp32 the outputs are those of the weights as they lie there.
    Its encoder pads within its convolutions.

    Raises SourceError.
    """
    vae = load(AutoencoderKL, source / "vae", dtype)
    make_fp16_safe(vae)
    pad_in_convolutions(vae)
    return vae


def tiny_preview(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The small decoder that a source brings."""
    return TinyPreview(load(AutoencoderTiny, folder, dtype), dtype)


def parameters(kind: Any, folder: Path) -> int:
    """How many weights the safetensors files of a component hold. Raises SourceError."""
    return sum(file.elements for file in weights_of(kind, folder)[1])


def read_vae(source: Path) -> dict[str, Any]:
    """The config of the VAE. Raises SourceError for one of another class than AutoencoderKL."""
    vae = read_json(source / "vae" / "config.json")
    if (name := vae.get("_class_name")) not in DECODERS:
        raise SourceError(
            str(source / "vae"), actual=f"_class_name {name!r}", allowed=", ".join(DECODERS),
            remedy="Export the pipeline with its own VAE; a tiny autoencoder may lie beside it, as its preview.",
        )  # fmt: skip
    return vae


def check_channels(source: Path, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """The UNet takes and makes what the VAE's latents are. Raises SourceError."""
    taken, latent = unet["in_channels"], vae["latent_channels"]
    if taken == 9:
        raise SourceError(
            str(source / "unet"), actual="an inpainting UNet, which takes 9 channels",
            allowed=f"one that takes {latent}",
            remedy="Export the model it was made from: `Request(image=…, mask=…)` inpaints with that.",
        )  # fmt: skip
    if (taken, unet.get("out_channels", taken)) != (latent, latent):
        raise SourceError(
            str(source / "unet"), actual=f"a UNet of {taken} to {unet.get('out_channels', taken)} channels",
            allowed=f"the VAE's {latent} latent channels", remedy="Export a text-to-image model.",
        )  # fmt: skip
