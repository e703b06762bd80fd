"""The modules around a UNet and a VAE: what the denoiser and the decoder are, as graphs.

Knows no family: what a UNet reads beside the prompt's states is named by the wires it gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.wiring import LORA
from export.lora_layers import LoraWire
from export.pictures import to_pixels, unscaled

POOLED, TIME_IDS, GUIDED = "text_embeds", "time_ids", "timestep_cond"
"""What a UNet may read beside sample, timestep and encoder_hidden_states; diffusers' words."""


class Denoiser(nn.Module):
    """sample (rows, C, H/8, W/8), timestep (rows,) float32, encoder_hidden_states → noise_pred, shaped as sample.

    added: the wires that follow, in order: text_embeds (rows, D), time_ids (rows, 6) float32, timestep_cond (rows, G)
    float32, lora (rows, rank, size), which the UNet's layers find in the wire that they were made with.
    """

    def __init__(self, unet: Any, added: Sequence[str] = (), loras: LoraWire | None = None) -> None:
        super().__init__()
        self.unet, self.added, self.loras = unet, tuple(added), loras

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *added: Tensor) -> Tensor:
        wires = dict(zip(self.added, added, strict=True))
        if self.loras is not None:
            self.loras.value = wires[LORA]
        condition, guidance = None, wires.get(GUIDED)
        if POOLED in wires:  # both fp32: they meet in a Concat, which has one type
            condition = {POOLED: wires[POOLED].float(), TIME_IDS: wires[TIME_IDS]}
        noise_pred: Tensor = self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=condition,
            timestep_cond=None if guidance is None else guidance.to(sample.dtype), return_dict=False,
        )[0]  # fmt: skip
        return noise_pred


class GuidanceEmbedding(nn.Module):
    """guidance_scale (samples,), sample_of_row (rows,) → timestep_cond (rows, G) float32, for distilled denoisers.

    Sine and cosine of (w − 1)·1000 at G/2 frequencies from 1 down to 10⁻⁴: equation (6) and appendix of Latent
    Consistency Models (arXiv 2310.04378), as diffusers' get_guidance_scale_embedding has it; an odd G ends in a zero.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        exponents = torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1))
        self.register_buffer("frequencies", torch.exp(exponents))
        self.odd = bool(width % 2)

    def forward(self, guidance_scale: Tensor, sample_of_row: Tensor) -> Tensor:
        w = torch.index_select(guidance_scale, 0, sample_of_row) - 1
        angles = (w * 1000)[:, None] * self.frequencies[None]
        parts = [torch.sin(angles), torch.cos(angles)]
        return torch.cat([*parts, torch.zeros_like(angles[:, :1])] if self.odd else parts, 1)


class Decoder(nn.Module):
    """latents (samples, C, H/8, W/8) float32 → images (samples, H, W, 3) uint8, rounded as diffusers does."""

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = vae, dtype

    def forward(self, latents: Tensor) -> Tensor:
        return to_pixels(self.vae.decode(unscaled(latents, self.vae).to(self.dtype), return_dict=False)[0])
