"""A Z-Image of random weights, small enough to export in seconds, saved by diffusers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.tiny_qwen import qwen_tokenizer

SIDE = 128
"""Pixels: the VAE's own size, of which the model paints half to twice."""


def transformer(**changes: Any) -> ZImageTransformer2DModel:
    """Three heads of 32; nothing in it is left as initial weights have it: no pad is zero, no norm the identity."""
    made = ZImageTransformer2DModel(**{
        "dim": 96, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 64,
        "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512], **changes,
    }).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("pad_token"):
                parameter.normal_()
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def text_encoder(**changes: Any) -> Qwen3Model:
    """Four layers; two heads of queries share one of keys and values."""
    made = Qwen3Model(Qwen3Config(**{
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **changes,
    })).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.mul_(4) if "norm" not in name else parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def vae(**changes: Any) -> AutoencoderKL:
    """A VAE of factor 8 with a shift and without quantisation's convolutions, which asks for fp32."""
    return AutoencoderKL(**{
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 32,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
        "sample_size": SIDE, "force_upcast": True, **changes,
    }).eval()  # fmt: skip


def save_tiny_zimage(folder: Path) -> None:
    """Write the model in diffusers layout; the same weights each time."""
    torch.manual_seed(61)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0), vae=vae(),
        text_encoder=text_encoder(), tokenizer=qwen_tokenizer(), transformer=transformer(),
    ).save_pretrained(folder)  # fmt: skip
