"""A Stable Diffusion model of random weights, small enough to export in seconds, saved by diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip


def save_tiny_model(folder: Path) -> None:
    """Write the model in diffusers layout; the same weights each time."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, layers_per_block=1, block_out_channels=(32, 32, 64), norm_num_groups=32,
        cross_attention_dim=32, attention_head_dim=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=32,
    )  # fmt: skip
    tokenizer = save_tokenizer(folder / "tokenizer")
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=1,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    torch.nn.init.normal_(text_encoder.final_layer_norm.bias, 0.3, 0.5)  # so that a chunk has a mean, as CLIP's have
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def save_tokenizer(files: Path, **tokens: str) -> CLIPTokenizer:
    """CLIP's byte-level BPE with the bytes alone: every text has ids. tokens: special ones, such as pad_token."""
    characters = sorted(ByteLevel.alphabet())
    words = characters + [c + "</w>" for c in characters] + ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    files.mkdir(parents=True, exist_ok=True)
    (files / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (files / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return CLIPTokenizer(str(files / "vocab.json"), str(files / "merges.txt"), model_max_length=77, **tokens)
