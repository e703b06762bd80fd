"""What a VAE does beside decoding: a picture becomes latents, and latents become a small picture without the decoder.

Knows neither how a graph is written nor what becomes of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.binding import Float32Array

Fit = Callable[[], Float32Array]
SEED = 5
GRIDS = (1, 2, 4, 8, 16)
"""Sides of the grids of random values that are laid over each other: latents are smooth, and of all scales."""
DEVIATION = 0.5
"""Of these latents. At 1, as of pictures, most pixels saturate (emoji: R² on pictures 0.36, at 0.5 it is 0.83)."""
SIDE, COUNT = 16, 12
"""Latents that the preview is fitted on: COUNT of SIDE × SIDE, 3072 places for 5 unknowns a colour."""


class Encoder(nn.Module):
    """image (samples, H, W, 3) uint8, image_noise (samples, C, H/8, W/8) → image_latents, as image_noise, float32.

    A draw from the VAE's distribution, less shift_factor, times scaling_factor: what diffusers' pipelines begin with.
    """

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = vae, dtype

    def forward(self, image: Tensor, image_noise: Tensor) -> Tensor:
        pixels = image.float() / 255  # TensorRT has uint8 at its borders only: the cast is the first thing
        x = (2 * pixels - 1).permute(0, 3, 1, 2).to(self.dtype)
        drawn = self.vae.encode(x, return_dict=False)[0]
        mean, deviation = drawn.mean.float(), torch.exp(0.5 * drawn.logvar.float())
        drawn_latents, shift = mean + deviation * image_noise, self.vae.config.shift_factor
        latents: Tensor = (drawn_latents if shift is None else drawn_latents - shift) * self.vae.config.scaling_factor
        return latents


class Preview(nn.Module):
    """latents (samples, C, H/8, W/8) float32 → preview (samples, H/8, W/8, 3) uint8: a pixel for each place.

    fit: makes the (C + 1, 3) weights, whose last row is the bias; called when the module first runs, for it takes a
    decoder, and who only paints needs none of it.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self._fit = fit
        self._weights: Float32Array | None = None

    def prepare(self) -> Float32Array:
        """The weights; found on the first call."""
        if self._weights is None:
            self._weights = self._fit()
        return self._weights

    def forward(self, latents: Tensor) -> Tensor:
        weights = torch.from_numpy(self.prepare()).to(latents.device)
        # A sum of products, not a product of matrices: TensorRT-RTX has none of fp32 for Turing.
        pixels = (latents.permute(0, 2, 3, 1)[..., None] * weights[:-1]).sum(-2) + weights[-1]
        return torch.round(torch.clamp(pixels, 0, 255)).to(torch.uint8)


class TinyPreview(nn.Module):
    """latents (samples, C, H/8, W/8) float32 → preview (samples, H, W, 3) uint8, by a small decoder as TAESD.

    It reads latents as the loop has them: its own scaling_factor is 1.
    """

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder, self.scale, self.dtype = vae.decoder, float(vae.config.scaling_factor), dtype

    def forward(self, latents: Tensor) -> Tensor:
        return to_pixels(self.decoder((latents / self.scale).to(self.dtype)))


def unscaled(latents: Tensor, vae: Any) -> Tensor:
    """Latents of the loop as a VAE's decoder reads them."""
    z: Tensor = latents / vae.config.scaling_factor
    return z if vae.config.shift_factor is None else z + vae.config.shift_factor


def to_pixels(decoded: Tensor) -> Tensor:
    """(B, 3, H, W) of −1 to 1, as a decoder makes them → (B, H, W, 3) uint8, rounded as diffusers does."""
    scaled = torch.clamp(decoded.float() / 2 + 0.5, 0, 1) * 255
    return torch.round(scaled).permute(0, 2, 3, 1).to(torch.uint8)  # TensorRT has uint8 at its borders only


def fit_preview(vae: Any) -> Float32Array:
    """(C + 1, 3): the linear map from latents to pixels of 0 to 255 that comes closest to what the decoder makes.

    By least squares, over the decoder's pixels of smooth random latents, averaged to one for each place. vae: fp32.
    """
    latents = smooth_latents(vae.config.latent_channels)
    with torch.inference_mode():
        images = vae.decode(unscaled(latents, vae), return_dict=False)[0]
        pixels = F.adaptive_avg_pool2d(torch.clamp(images / 2 + 0.5, 0, 1) * 255, SIDE)
    places = latents.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    wanted = pixels.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    known = np.concatenate([places, np.ones((len(places), 1))], 1)
    solution: Float32Array = np.linalg.lstsq(known, wanted, rcond=None)[0].astype(np.float32)
    return solution


def smooth_latents(channels: int) -> Tensor:
    """(COUNT, channels, SIDE, SIDE) float32 of deviation DEVIATION, the same each time."""
    rng = np.random.default_rng(SEED)
    grids = [torch.from_numpy(rng.standard_normal((COUNT, channels, side, side), np.float32)) for side in GRIDS]
    wide = [F.interpolate(grid, size=(SIDE, SIDE), mode="bilinear", align_corners=False) for grid in grids]
    total = torch.stack(wide).sum(0)
    return DEVIATION * total / total.std()
