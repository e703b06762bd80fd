"""SDXL, its Turbo and its Lightning: two CLIP text encoders, a pooled prompt and six time ids, a VAE of four channels.

A UNet that reads the guidance scale (LCM-SDXL) is of this family too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from engine.errors import SourceError
from export.components import Fuse, load_text
from export.families import Model, ModelOptions
from export.source import RESAVE, read_index, read_json
from export.stable_diffusion import Description, check_text, model_of, read_unet
from export.text_pair import PairConditioning
from export.tokenizer import special_ids

TIME_IDS = 6
"""Original height and width, top and left of the crop, target height and width."""
COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
KINDS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def open_model(source: Path, options: ModelOptions) -> Model:
    """Read the configs of a folder. Raises SourceError where they describe another family, else as `model_of` does."""
    texts = _read_texts(source)
    first, second = texts.values()
    check_unet(source, read_unet(source), first["hidden_size"] + second["hidden_size"], second["projection_dim"])
    layers = min(first["num_hidden_layers"], second["num_hidden_layers"])
    return model_of(
        Description(
            family="sdxl", source=source, components=COMPONENTS, tokenizers=("tokenizer", "tokenizer_2"), text=first,
            max_clip_skip=layers - 2, pooled=int(second["projection_dim"]), steps=30, guidance_scale=5.0,
            conditioning=lambda dtype, fuse: conditioning(
                source, first["max_position_embeddings"], layers - 2, dtype, fuse
            ),
        ),
        options,
    )  # fmt: skip


def _read_texts(source: Path) -> dict[str, dict[str, Any]]:
    """The configs of both encoders. Raises SourceError where one is missing, or they read prompts differently."""
    missing = [name for name in KINDS if not (source / name / "config.json").is_file()]
    if missing:
        raise SourceError(
            str(source), actual=f"no {missing[0]}", allowed="SDXL's two text encoders",
            remedy="Export the base model; refiners, which have one, are not supported.",
        )  # fmt: skip
    texts = {name: read_json(source / name / "config.json") for name in KINDS}
    for name, text in texts.items():
        check_text(source / name, text)
    first, second = texts.values()
    for key in ("max_position_embeddings", "vocab_size"):
        if first[key] != second[key]:
            raise SourceError(
                str(source / "text_encoder_2"), actual=f"{key} {second[key]}",
                allowed=f"{first[key]}, as of text_encoder", remedy=RESAVE,
            )  # fmt: skip
    return texts


def check_unet(source: Path, unet: dict[str, Any], hidden: int, pooled: int) -> None:
    """The UNet reads what the encoders make, and six time ids. Raises SourceError."""
    added = pooled + TIME_IDS * int(unet.get("addition_time_embed_dim") or 0)
    wanted = {
        "addition_embed_type": "text_time", "cross_attention_dim": hidden,
        "projection_class_embeddings_input_dim": added,
    }  # fmt: skip
    for key, value in wanted.items():
        if unet.get(key) != value:
            raise SourceError(
                str(source / "unet"), actual=f"{key} {unet.get(key)!r}", allowed=f"{value!r}, as SDXL's base model",
                remedy="Export the base model; refiners, which read an aesthetic score, are not supported.",
            )  # fmt: skip


def conditioning(source: Path, chunk: int, max_clip_skip: int, dtype: torch.dtype, fuse: Fuse | None) -> nn.Module:
    """Both encoders as one module."""
    encoders = [load_text(kind, source / name, dtype, fuse) for name, kind in KINDS.items()]
    return PairConditioning(
        encoders, chunk, max_clip_skip, special_ids(source / "tokenizer"),
        pad_id=special_ids(source / "tokenizer_2")["pad_id"],
        zero_empty=bool(read_index(source).get("force_zeros_for_empty_prompt", True)),
    )  # fmt: skip
