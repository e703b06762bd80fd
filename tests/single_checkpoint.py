"""A Stable Diffusion folder of diffusers as one checkpoint in the names that the models were published with.

The way back of what diffusers' from_single_file does, written from the names of the published files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0",
    "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1", "layer_norm2": "ln_2", ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.", "self_attn": "attn", "final_layer_norm": "ln_final",
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(source: Path, path: Path, *, layers: int = 1) -> None:
    """layers: of each block of the UNet and the VAE."""
    tensors = {}
    unet = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    attending = {match[1] for key in unet if (match := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    for key, value in unet.items():
        tensors[f"model.diffusion_model.{unet_key(key, layers, attending)}"] = value
    for key, value in load_file(source / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = vae_key(key)
        is_product = ".attn_1." in name and value.ndim == 2
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None].contiguous() if is_product else value
    if (source / "text_encoder_2").exists():
        tensors |= clip(source / "text_encoder", "conditioner.embedders.0.transformer.text_model.")
        tensors |= open_clip(source / "text_encoder_2", "conditioner.embedders.1.model.")
    elif json.loads((source / "text_encoder" / "config.json").read_text())["hidden_act"] == "gelu":
        tensors |= open_clip(source / "text_encoder", "cond_stage_model.model.")
    else:
        tensors |= clip(source / "text_encoder", "cond_stage_model.transformer.text_model.")
    save_file(tensors, path)


def clip(folder: Path, prefix: str) -> dict[str, Tensor]:
    """A text encoder as OpenAI's is stored."""
    return {f"{prefix}{key}": value for key, value in load_file(folder / "model.safetensors").items()}


def open_clip(folder: Path, prefix: str) -> dict[str, Tensor]:
    """A text encoder as OpenCLIP stores it: queries, keys and values in one, the projection the other way around."""
    weights = {key.removeprefix("text_model."): value for key, value in load_file(folder / "model.safetensors").items()}
    width = weights["final_layer_norm.weight"].numel()
    found = {"text_projection": weights.pop("text_projection.weight", torch.eye(width)).T.contiguous()}
    for key in [key for key in weights if ".q_proj." in key]:
        parts = [weights.pop(key.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        found[open_clip_key(key.replace(".q_proj.", ".in_proj_"))] = torch.cat(parts)
    found |= {open_clip_key(key): value for key, value in weights.items()}
    return {f"{prefix}{key}": value for key, value in found.items()}


def open_clip_key(key: str) -> str:
    """A name of transformers' CLIPTextModel in OpenCLIP's."""
    for ours, theirs in OPEN_CLIP.items():
        key = key.replace(ours, theirs)
    return key


def unet_key(key: str, layers: int, attending: set[str]) -> str:
    """A name of diffusers' UNet2DConditionModel in that of the published files.

    attending: the up blocks with attention, whose upsampler is the third of its place instead of the second.
    """
    for ours, theirs in TOP.items():
        if key.startswith(f"{ours}."):
            return _resnet(theirs + key.removeprefix(ours))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    assert match is not None, key
    side, block, part, j, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        at = 1 + block * (layers + 1) + (layers if part == "downsamplers" else j)
        if part == "downsamplers":
            return f"input_blocks.{at}.0.op.{rest.removeprefix('conv.')}"
        return _resnet(f"input_blocks.{at}.{int(part == 'attentions')}.{rest}")
    at = block * (layers + 1) + (layers if part == "upsamplers" else j)
    if part == "upsamplers":
        return f"output_blocks.{at}.{2 if match[2] in attending else 1}.{rest}"
    return _resnet(f"output_blocks.{at}.{int(part == 'attentions')}.{rest}")


def _resnet(key: str) -> str:
    """The layers of a residual block, or of anything else unchanged."""
    if "transformer_blocks" in key:
        return key
    for ours, theirs in RESNET.items():
        key = re.sub(rf"\.{ours}\.(weight|bias)$", rf".{theirs}.\1", key)
    return key


def vae_key(key: str, blocks: int = 4) -> str:
    """A name of diffusers' AutoencoderKL in that of the published files."""
    key = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in ATTENTION.items():
            key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{blocks - 1 - int(match[1])}", key)
    key = key.replace("resnets", "block").replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
