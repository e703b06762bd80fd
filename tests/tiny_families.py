"""Tiny models of random weights of each Stable Diffusion family, saved by diffusers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.tiny_model import SCHEDULER, save_tokenizer

Save = Callable[[Path], None]
TRAILING: dict[str, Any] = {**SCHEDULER, "timestep_spacing": "trailing"}


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet with cross-attention at two sizes."""
    return UNet2DConditionModel(**{
        "sample_size": 32, "layers_per_block": 1, "block_out_channels": (32, 32, 64), "norm_num_groups": 32,
        "cross_attention_dim": 32, "attention_head_dim": (1, 1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **changes,
    })  # fmt: skip


def vae(**changes: Any) -> AutoencoderKL:
    """A VAE of factor 8."""
    return AutoencoderKL(**{
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32,
        **changes,
    })  # fmt: skip


def text_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    """Of a CLIP text encoder with three layers."""
    return CLIPTextConfig(**{
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 1, "max_position_embeddings": 77, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "projection_dim": 32, **changes,
    })  # fmt: skip


def encoder(kind: Any, config: CLIPTextConfig) -> Any:
    """An encoder whose final norm has a bias, so that a chunk has a mean, as CLIP's have."""
    made = kind(config)
    torch.nn.init.normal_(getattr(made, "text_model", made).final_layer_norm.bias, 0.3, 0.5)
    return made


def save_sd21(folder: Path) -> None:
    """SD 2.1: v-prediction, a wider encoder with GELU and its own padding, linear projections, heads per block."""
    torch.manual_seed(21)
    tokenizer = save_tokenizer(folder / "tokenizer", pad_token="!")
    text = encoder(CLIPTextModel, text_config(tokenizer, hidden_size=48, num_attention_heads=2, hidden_act="gelu"))
    scheduler = DDIMScheduler(**SCHEDULER, prediction_type="v_prediction", clip_sample=False)
    StableDiffusionPipeline(
        unet=unet(cross_attention_dim=48, use_linear_projection=True, upcast_attention=True), vae=vae(),
        tokenizer=tokenizer, text_encoder=text, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def save_sd_turbo(folder: Path) -> None:
    """SD-Turbo: trailing timesteps, few steps, no guidance."""
    torch.manual_seed(22)
    tokenizer = save_tokenizer(folder / "tokenizer", pad_token="!")
    text = encoder(CLIPTextModel, text_config(tokenizer, hidden_act="gelu"))
    StableDiffusionPipeline(
        unet=unet(use_linear_projection=True), vae=vae(), tokenizer=tokenizer, text_encoder=text,
        scheduler=EulerDiscreteScheduler(**TRAILING), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def save_lcm(folder: Path) -> None:
    """A latent consistency model: the UNet reads an embedding of the guidance scale."""
    torch.manual_seed(23)
    tokenizer = save_tokenizer(folder / "tokenizer")
    LatentConsistencyModelPipeline(
        unet=unet(time_cond_proj_dim=32), vae=vae(), tokenizer=tokenizer,
        text_encoder=encoder(CLIPTextModel, text_config(tokenizer)), scheduler=LCMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def save_sdxl(folder: Path, *, scheduler: Any = None, zero_empty: bool = True, **changes: Any) -> None:
    """SDXL: two encoders of other widths and paddings, a pooled prompt, time ids, a VAE that asks for fp32."""
    torch.manual_seed(24)
    first = save_tokenizer(folder / "tokenizer")
    second = save_tokenizer(folder / "tokenizer_2", pad_token="!")
    big = text_config(second, hidden_size=48, num_hidden_layers=4, num_attention_heads=2, hidden_act="gelu",
                      projection_dim=40)  # fmt: skip
    StableDiffusionXLPipeline(
        unet=unet(
            cross_attention_dim=80, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=88, use_linear_projection=True,
            transformer_layers_per_block=(1, 1, 2), **changes,
        ),
        vae=vae(scaling_factor=0.13025, force_upcast=True), tokenizer=first, tokenizer_2=second,
        text_encoder=encoder(CLIPTextModel, text_config(first)),
        text_encoder_2=encoder(CLIPTextModelWithProjection, big),
        scheduler=scheduler or EulerDiscreteScheduler(**SCHEDULER), force_zeros_for_empty_prompt=zero_empty,
    ).save_pretrained(folder)  # fmt: skip


def save_sdxl_turbo(folder: Path) -> None:
    """SDXL-Turbo: ancestral Euler with trailing timesteps; an empty negative prompt is encoded."""
    save_sdxl(folder, scheduler=EulerAncestralDiscreteScheduler(**TRAILING), zero_empty=False)


def save_sdxl_lcm(folder: Path) -> None:
    """LCM-SDXL: a pooled prompt and an embedding of the guidance scale."""
    save_sdxl(folder, scheduler=LCMScheduler(**SCHEDULER), time_cond_proj_dim=32)


FAMILIES: dict[str, Save] = {
    "sd21": save_sd21, "sd-turbo": save_sd_turbo, "lcm": save_lcm, "sdxl": save_sdxl, "sdxl-turbo": save_sdxl_turbo,
    "sdxl-lcm": save_sdxl_lcm,
}  # fmt: skip
