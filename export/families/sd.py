"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, a VAE with four latent channels.

Knows the components and how their modules map to our wires; not how graphs are written or run.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from engine.binding import Axis, Binding, DType, Lifetime, Precision
from engine.bundle import Defaults, Latents, Limits
from engine.errors import SchedulerUnsupported, SourceError
from engine.wiring import host_wires
from export.families import Model
from export.graph import GraphSpec
from export.pictures import Encoder, Preview, fit_preview
from export.solver import COLUMNS, HISTORY, ROWS, check_scheduler, own_scheduler
from export.solver_graph import Solver, Start
from export.source import read_defaults, read_json
from export.text_graph import Conditioning

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
STAND_IN = "dpmpp_2m"
MAX_CHUNKS = 8
"""Of a prompt: 600 tokens of text, about 2500 characters. A bound for memory: each chunk adds keys and values to every
attention, and profiles are built for as many as are named."""
PROMPT = ("input_ids", "token_weights", "clip_skip")
"""What the conditioning is made of, row by row."""
TORCH = {"fp32": torch.float32, "fp16": torch.float16}
NUMPY: dict[Precision, DType] = {"fp32": "float32", "fp16": "float16"}


class Denoiser(nn.Module):
    """sample (rows, C, H/8, W/8), timestep (rows,) float32, encoder_hidden_states → noise_pred, shaped as sample."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        noise_pred: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return noise_pred


class Decoder(nn.Module):
    """latents (samples, C, H/8, W/8) float32 → images (samples, H, W, 3) uint8, rounded as diffusers does."""

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = vae, dtype

    def forward(self, latents: Tensor) -> Tensor:
        z = (latents / self.vae.config.scaling_factor).to(self.dtype)
        pixels = self.vae.decode(z, return_dict=False)[0].float()
        scaled = torch.clamp(pixels / 2 + 0.5, 0, 1) * 255
        return torch.round(scaled).permute(0, 2, 3, 1).to(torch.uint8)  # TensorRT has uint8 at its borders only


def open_model(source: Path) -> Model:
    """Read the configs of a Stable Diffusion 1.x folder; weights are loaded when the graphs are asked for.

    Raises SourceError where a config is missing, lacks a key, or describes another family.
    """
    unet, text = read_json(source / "unet" / "config.json"), read_json(source / "text_encoder" / "config.json")
    vae = read_json(source / "vae" / "config.json")
    if unet.get("addition_embed_type") or unet.get("time_cond_proj_dim"):
        raise SourceError(
            str(source / "unet"), actual="a UNet with added embeddings", allowed="Stable Diffusion 1.x",
            remedy="SDXL and LCM are families of their own, not supported yet.",
        )  # fmt: skip
    try:
        _check_channels(source, unet, vae)
        return _model(source, unet, text, vae)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            str(source), actual=f"configs without a usable {error}", allowed="the configs that diffusers saves",
            remedy="Save the pipeline again with diffusers' save_pretrained().",
        ) from error  # fmt: skip


def _check_channels(source: Path, unet: dict[str, Any], vae: dict[str, Any]) -> None:
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


def _model(source: Path, unet: dict[str, Any], text: dict[str, Any], vae: dict[str, Any]) -> Model:
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = int(unet["sample_size"]) * factor
    scheduler = read_json(source / "scheduler" / "scheduler_config.json")
    defaults = Defaults(
        height=side, width=side, num_inference_steps=20, guidance_scale=7.5, scheduler=default_scheduler(scheduler)
    )
    return Model(
        family="sd", source=source, components=COMPONENTS, guidance_offset=0.0,
        latents=Latents(channels=unet["in_channels"], factor=factor),
        limits=Limits(min_px=min(128, side), max_px=2 * side, multiple_px=factor),
        defaults=read_defaults(source, defaults), scheduler_config=scheduler,
        max_tokens=text["max_position_embeddings"], max_chunks=MAX_CHUNKS,
        max_clip_skip=text["num_hidden_layers"] - 1, vocabulary=text["vocab_size"],
        graphs=tuple(SIGNATURES), specs=lambda precision: graphs(source, precision, unet, factor),
    )  # fmt: skip


def default_scheduler(config: dict[str, Any]) -> str:
    """Our name of the model's own scheduler; of one that has no tables the stand-in is told in a warning.

    Raises SchedulerUnsupported where the settings leave the stand-in none either.
    """
    try:
        return own_scheduler(config)
    except SchedulerUnsupported as error:
        check_scheduler(STAND_IN, config)
        warnings.warn(
            f"the model's scheduler {config.get('_class_name')} has no tables ({error.actual}); "
            f"requests that name none get '{STAND_IN}'", stacklevel=2,
        )  # fmt: skip
        return STAND_IN


def graphs(source: Path, precision: Precision, unet: dict[str, Any], factor: int) -> tuple[GraphSpec, ...]:
    """The graphs of one precision, in the order they run in."""
    dtype = TORCH[precision]
    encoder = load(CLIPTextModel, source / "text_encoder", dtype)
    encoder.set_attn_implementation("eager")  # the fused one gives LayerNormalization a float input in fp16
    text = encoder.config
    wire = Wires(NUMPY[precision], unet["in_channels"], factor, unet["cross_attention_dim"])
    vae = load(AutoencoderKL, source / "vae", dtype)
    modules: dict[str, nn.Module] = {
        "conditioning": Conditioning(encoder, text.max_position_embeddings, text.num_hidden_layers - 1),
        "encoder": Encoder(vae, dtype),
        "start": Start(dtype),
        "denoiser": Denoiser(load(UNet2DConditionModel, source / "unet", dtype)),
        "solver": Solver(dtype),
        "decoder": Decoder(vae, dtype),
        "preview": Preview(lambda: fit_preview(load(AutoencoderKL, source / "vae", torch.float32))),
    }
    return tuple(wire.spec(name, module.eval(), precision) for name, module in modules.items())


def load(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One component in eval mode, from safetensors on this disk only. Raises SourceError."""
    try:
        named = {"dtype" if kind is CLIPTextModel else "torch_dtype": dtype}
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **named).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SourceError(
            str(folder), actual=f"{type(error).__name__}: {error}", allowed=f"a saved {kind.__name__}",
            remedy="Save the pipeline again with diffusers' save_pretrained().",
        ) from error  # fmt: skip


class Wires:
    """The bindings of the family's graphs at one precision; every wire is described once."""

    def __init__(self, model: DType, channels: int, factor: int, width: int) -> None:
        latent: tuple[Axis, ...] = (channels, f"height/{factor}", f"width/{factor}")
        entries: dict[str, tuple[DType, tuple[Axis, ...], Lifetime]] = {
            "encoder_hidden_states": (model, ("rows", "tokens", width), "per_row"),
            "latents": ("float32", ("samples", *latent), "carried"),
            "history": ("float32", ("samples", HISTORY, *latent), "carried"),
            "row": ("int32", ("samples",), "carried"),
            "sample": (model, ("rows", *latent), "transient"),
            "timestep": ("float32", ("rows",), "transient"),
            "noise_pred": (model, ("rows", *latent), "transient"),
            "images": ("uint8", ("samples", "height", "width", 3), "transient"),
            "image_latents": ("float32", ("samples", *latent), "per_sample"),
            "preview": ("uint8", ("samples", *latent[1:], 3), "transient"),
        }
        for name in ("latents", "history", "row"):
            entries[f"next_{name}"] = entries[name]
        for name, wire in host_wires(channels, factor, ROWS, len(COLUMNS)).items():
            entries[name] = (*wire, "per_row" if name in PROMPT else "per_sample")
        self.bindings = {
            name: Binding(name=name, dtype=dtype, shape=shape, lifetime=lifetime)
            for name, (dtype, shape, lifetime) in entries.items()
        }

    def spec(self, name: str, module: nn.Module, precision: Precision) -> GraphSpec:
        """A graph of SIGNATURES with these bindings; those of EXACT compute in fp32 at every precision."""
        stage, inputs, outputs = SIGNATURES[name]
        own: Precision = "fp32" if name in EXACT else precision
        carried = {n.removeprefix("next_"): n for n in outputs if n.startswith("next_")}
        pick = self.bindings.__getitem__
        return GraphSpec(
            name=name, stage=stage, module=module, precision=own, carried=carried,
            inputs=tuple(map(pick, inputs)), outputs=tuple(map(pick, outputs)), only_with=ONLY_WITH.get(name, ()),
        )  # fmt: skip


EXACT = ("start", "solver", "preview")
ONLY_WITH: dict[str, tuple[str, ...]] = {"encoder": ("image",)}
SIGNATURES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "conditioning": ("once", PROMPT, ("encoder_hidden_states",)),
    "encoder": ("once", ("image", "image_noise"), ("image_latents",)),
    "start": (
        "once",
        ("table", "noise", "image_latents", "sample_of_row"),
        ("latents", "history", "row", "sample", "timestep"),
    ),
    "denoiser": ("loop", ("sample", "timestep", "encoder_hidden_states"), ("noise_pred",)),
    "solver": (
        "loop",
        (
            "noise_pred", "latents", "history", "row", "table", "noise",
            "guidance_scale", "cond_row", "uncond_row", "sample_of_row", "image_latents", "mask",
        ),
        ("next_latents", "next_history", "next_row", "sample", "timestep"),
    ),
    "decoder": ("final", ("latents",), ("images",)),
    "preview": ("preview", ("latents",), ("preview",)),
}  # fmt: skip
