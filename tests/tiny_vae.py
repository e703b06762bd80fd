"""A small decoder as TAESD is one, of random weights, saved by diffusers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny


def save_tiny_vae(folder: Path, **changes: Any) -> None:
    """Write one of factor 8, whose pixels spread over all greys."""
    torch.manual_seed(5)
    tiny = AutoencoderTiny(**{
        "encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4,
        "num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4, **changes,
    })  # fmt: skip
    with torch.no_grad():
        last = tiny.decoder.layers[-1]
        last.weight.mul_(4.0)
        last.bias.add_(0.5)
    tiny.save_pretrained(folder)
