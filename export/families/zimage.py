"""Z-Image and its Turbo: Qwen3 as text encoder, a transformer over image and caption together, a VAE of 16 channels.

Everything that the published models have is supported, and nothing else: what a config may say beside is refused by
name. Z-Image-Omni, whose transformer also reads images, has another pipeline class.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Model

from engine.errors import SourceError, shown
from engine.schema import Defaults, Latents, Limits, LoraInputs
from engine.tokens import MAX_TOKENS, MULTIPLE
from export.components import LARGE, Fuse, load, load_vae, parameters, read_vae, tiny_preview
from export.families import Model, ModelOptions
from export.lora import fuser, read_loras
from export.lora_inputs import check_rank, take_loras
from export.pictures import Encoder, Fit, Preview, fit_preview
from export.qwen import QwenConditioning
from export.solver import own_scheduler
from export.solver_graph import Solver, Start
from export.source import read_defaults, read_json
from export.split_attention import split_attention
from export.tiny_vae import tiny_folder
from export.unet import Decoder
from export.wires import TORCH, Make, Widths, Wires, signatures
from export.zimage import PATCH, ZImageDenoiser
from export.zimage_fold import fold_text, fold_transformer
from export.zimage_lora import lora_inputs, place_of

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
HOLLOW = ("conditioning", "denoiser")
"""The graphs with gigabytes of weights."""
TIMESTEPS = 1000
"""What diffusers' pipeline divides a scheduler's timesteps by, whatever its config says."""


def open_model(source: Path, options: ModelOptions) -> Model:
    """Read the configs of a folder. Raises SourceError where they describe what Z-Image does not have."""
    transformer = read_json(source / "transformer" / "config.json")
    text, vae = read_json(source / "text_encoder" / "config.json"), read_vae(source)
    scheduler = read_json(source / "scheduler" / "scheduler_config.json")
    check_transformer(source, transformer)
    check_text(source, text)
    check_together(source, transformer, text, vae, scheduler)
    check_rank(options.lora_rank)
    loras = read_loras(options.loras, COMPONENTS, place_of)
    inputs = lora_inputs(transformer, options.lora_rank) if options.lora_rank else None
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    latents = Latents(channels=transformer["in_channels"], factor=factor)
    tiny = tiny_folder(source, latents)
    widths = Widths(hidden=text["hidden_size"], loras=inputs, tiny=tiny, captions=True, hollow=HOLLOW)
    fitted = cache(lambda: fit_preview(load(AutoencoderKL, source / "vae", torch.float32)))
    side, limits = int(vae["sample_size"]), limits_of(transformer, vae, factor)
    defaults = Defaults(
        height=side, width=side, num_inference_steps=8, guidance_scale=0.0, scheduler=own_scheduler(scheduler)
    )
    return Model(
        family="zimage", source=source, components=(*COMPONENTS, *([] if tiny is None else [tiny])),
        tokenizers=("tokenizer",), latents=latents, limits=limits, defaults=read_defaults(source, defaults),
        guidance="classifier_free", guidance_offset=1.0, scheduler_config=scheduler, max_tokens=MAX_TOKENS,
        max_chunks=1, max_clip_skip=0, vocabulary=text["vocab_size"], loras=loras, lora_inputs=inputs,
        large=parameters(ZImageTransformer2DModel, source / "transformer") >= LARGE,
        graphs=tuple(signatures(widths)), multiple=MULTIPLE, masked=options.masked,
        specs=lambda precision, names=None: Wires(precision, latents, widths).specs(
            modules(source, TORCH[precision], widths, fuser(loras, place_of), options.masked, fitted), names
        ),
    )  # fmt: skip


def modules(
    source: Path, dtype: torch.dtype, widths: Widths, fuse: Fuse | None, masked: bool, fitted: Fit
) -> dict[str, Make]:  # fmt: skip
    """What makes the module of each graph; a component is loaded once. fitted: a linear preview's weights."""
    vae, tiny = cache(lambda: split_vae(source, dtype)), widths.tiny
    return {
        "conditioning": lambda: conditioning(source, dtype),
        "encoder": lambda: Encoder(vae(), dtype),
        "start": lambda: Start(dtype),
        "denoiser": lambda: denoiser(source, dtype, widths.loras, fuse, masked=masked),
        "solver": lambda: Solver(dtype),
        "decoder": lambda: Decoder(vae(), dtype),
        "preview": lambda: Preview(fitted) if tiny is None else tiny_preview(source / tiny, dtype),
    }


def split_vae(source: Path, dtype: torch.dtype) -> Any:
    """The VAE, for pictures of up to 2048² px; its latents are even along both sides."""
    vae = load_vae(source, dtype)
    split_attention(vae)
    return vae


def conditioning(source: Path, dtype: torch.dtype) -> nn.Module:
    """The text encoder, whose states are scaled as the denoiser expects them."""
    text = load(Qwen3Model, source / "text_encoder", dtype)
    fold_text(text)
    return QwenConditioning(text, MAX_TOKENS)


def denoiser(
    source: Path, dtype: torch.dtype, loras: LoraInputs | None = None, fuse: Fuse | None = None, *, masked: bool = False
) -> nn.Module:
    """The transformer, with LoRAs added and inputs for more where there are some, so that fp16 holds what it computes.

    LoRAs are added in float32 one layer at a time: all of it in float32 is twice as much.
    """
    transformer = load(ZImageTransformer2DModel, source / "transformer", dtype)
    if fuse is not None:
        fuse(transformer, "transformer")
    wire = None if loras is None else take_loras(transformer, loras)
    fold_transformer(transformer)
    return ZImageDenoiser(transformer, masked=masked, loras=wire)


def limits_of(transformer: dict[str, Any], vae: dict[str, Any], factor: int) -> Limits:
    """From half of the VAE's own size to twice of it, in whole tokens, and no farther than there are positions."""
    side, multiple = int(vae["sample_size"]), factor * PATCH
    most = min(2 * side, multiple * min(transformer["axes_lens"][1:]))
    return Limits(
        min_px=side // 2 // multiple * multiple, max_px=most // multiple * multiple, multiple_px=multiple
    )  # fmt: skip


def check_transformer(source: Path, config: dict[str, Any]) -> None:
    """A transformer as diffusers' ZImagePipeline runs it. Raises SourceError."""
    wanted = {
        "_class_name": "ZImageTransformer2DModel", "all_patch_size": [PATCH], "all_f_patch_size": [1], "qk_norm": True,
        "n_kv_heads": config["n_heads"],
    }  # fmt: skip
    for key, value in wanted.items():
        if config[key] != value:
            raise _unsupported(source / "transformer", f"{key} {config[key]!r}", repr(value))
    for key in ("norm_eps", "rope_theta", "t_scale"):
        if not isinstance(config[key], int | float) or isinstance(config[key], bool) or not config[key] > 0:
            raise _unsupported(source / "transformer", f"{key} {shown(config[key])}", "a number above 0")
    if config.get("siglip_feat_dim") is not None:
        actual = f"siglip_feat_dim {config['siglip_feat_dim']!r}: Z-Image-Omni's, which reads images"
        raise _unsupported(source / "transformer", actual, "none")
    if len(config["axes_dims"]) != 3 or len(config["axes_lens"]) != 3 or config["axes_lens"][0] < MAX_TOKENS + 2:
        actual = f"axes_dims {config['axes_dims']!r} and axes_lens {config['axes_lens']!r}"
        raise _unsupported(source / "transformer", actual, f"three axes, the first of {MAX_TOKENS + 2} or more")


def check_text(source: Path, config: dict[str, Any]) -> None:
    """A text encoder of Qwen3's kind, every layer of which attends to all that came before. Raises SourceError."""
    folder, rope = source / "text_encoder", config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config.get("model_type") != "qwen3":
        raise _unsupported(folder, f"model_type {config.get('model_type')!r}", "'qwen3'")
    if config.get("use_sliding_window") or set(config.get("layer_types") or ()) - {"full_attention"}:
        raise _unsupported(folder, "layers with sliding windows", "full attention in every layer")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise _unsupported(folder, f"rope_type {kind!r}", "'default'")
    if config["num_hidden_layers"] < 2:
        raise _unsupported(folder, f"num_hidden_layers {config['num_hidden_layers']}", "2 or more")


def check_together(
    source: Path, transformer: dict[str, Any], text: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]
) -> None:
    """What the transformer reads is what the others make. Raises SourceError."""
    pairs = (
        ("transformer", "cap_feat_dim", transformer["cap_feat_dim"], text["hidden_size"], "the text encoder's width"),
        ("transformer", "in_channels", transformer["in_channels"], vae["latent_channels"], "the VAE's channels"),
        ("scheduler", "num_train_timesteps", scheduler.get("num_train_timesteps", TIMESTEPS), TIMESTEPS,
         "which diffusers' pipeline divides by"),
    )  # fmt: skip
    for folder, key, actual, value, what in pairs:
        if actual != value:
            raise _unsupported(source / folder, f"{key} {actual!r}", f"{value!r}, {what}")


def _unsupported(folder: Path, actual: str, allowed: str) -> SourceError:
    return SourceError(
        str(folder), actual=actual, allowed=f"{allowed}, as the published Z-Image and Z-Image-Turbo have it",
        remedy="Export a pipeline of their kind that diffusers' ZImagePipeline runs.",
    )  # fmt: skip
