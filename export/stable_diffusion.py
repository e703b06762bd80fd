"""What the Stable Diffusion families share: a UNet, a VAE and CLIP text encoders, described from their configs.

Does not know which encoders there are nor what they make; a family says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from engine.errors import SchedulerUnsupported, SourceError
from engine.schema import Defaults, Latents, Limits
from export.components import LARGE, Fuse, check_channels, load, load_vae, parameters, read_vae, tiny_preview
from export.families import Model, ModelOptions
from export.lora import fuser, read_loras, unet_names
from export.lora_inputs import check_rank, lora_inputs, take_loras
from export.pictures import Encoder, Fit, Preview, fit_preview
from export.scheduler import check_class
from export.solver import check_scheduler, own_scheduler
from export.solver_graph import Solver, Start
from export.source import read_defaults, read_json
from export.tiny_vae import tiny_folder
from export.unet import Decoder, Denoiser, GuidanceEmbedding
from export.unsupported import check_latents, check_prediction, check_unet
from export.wires import TORCH, Make, Widths, Wires, signatures

STAND_IN = "dpmpp_2m"
MAX_CHUNKS = 8
"""Of a prompt: 600 tokens of text, about 2500 characters. A bound for memory: each chunk adds keys and values to every
attention, and profiles are built for as many as are named."""
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a family says of a model, beside its configs.

    text: the config of the encoder that bounds prompts; tokenizers, components: folders. steps, guidance_scale: the
    defaults where it is not distilled. conditioning: makes the module of the text encoders in a torch type, with
    LoRAs added where there are some.
    """

    family: str
    source: Path
    components: tuple[str, ...]
    tokenizers: tuple[str, ...]
    text: dict[str, Any]
    max_clip_skip: int
    pooled: int
    steps: int
    guidance_scale: float
    conditioning: Callable[[torch.dtype, Fuse | None], nn.Module]


def read_unet(source: Path) -> dict[str, Any]:
    """The config of a UNet as Stable Diffusion's; weights are loaded when graphs are asked for. Raises SourceError."""
    config = read_json(source / "unet" / "config.json")
    check_unet(source / "unet", config)
    return config


def read_scheduler(source: Path) -> dict[str, Any]:
    """The config of the scheduler. Raises SourceError for a prediction_type or a class that there is not."""
    path = source / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    check_prediction(path, config)
    check_class(config)
    return config


def model_of(told: Description, options: ModelOptions) -> Model:
    """The model that a family describes.

    Raises SourceError where a config describes what the families do not have; KeyError, TypeError or ValueError where
    it lacks a key.
    """
    source, unet, vae = told.source, read_unet(told.source), read_vae(told.source)
    check_channels(source, unet, vae)
    check_latents(source / "vae", vae)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = int(unet["sample_size"]) * factor
    scheduler = read_scheduler(source)
    guided = unet.get("time_cond_proj_dim")
    check_rank(options.lora_rank)
    loras = read_loras(options.loras, told.components, unet_names(unet))
    inputs = lora_inputs(unet, options.lora_rank) if options.lora_rank else None
    latents = Latents(channels=unet["in_channels"], factor=factor)
    tiny = tiny_folder(source, latents)
    widths = Widths(
        hidden=unet["cross_attention_dim"], pooled=told.pooled, guidance=guided or 0, loras=inputs, tiny=tiny
    )  # fmt: skip
    fitted = cache(lambda: fit_preview(load(AutoencoderKL, source / "vae", torch.float32)))  # for every precision
    steps, guidance_scale = sampling(told, guided is not None, scheduler)
    defaults = Defaults(
        height=side, width=side, num_inference_steps=steps,
        guidance_scale=guidance_scale, scheduler=default_scheduler(scheduler),
    )  # fmt: skip
    return Model(
        family=told.family, source=source, components=(*told.components, *([] if tiny is None else [tiny])),
        tokenizers=told.tokenizers, latents=latents,
        limits=Limits(min_px=min(128, side), max_px=2 * side, multiple_px=factor),
        defaults=read_defaults(source, defaults), scheduler_config=scheduler,
        guidance="classifier_free" if guided is None else "embedded", guidance_offset=0.0,
        max_tokens=told.text["max_position_embeddings"], max_chunks=MAX_CHUNKS, max_clip_skip=told.max_clip_skip,
        vocabulary=told.text["vocab_size"], large=parameters(UNet2DConditionModel, source / "unet") >= LARGE,
        loras=loras, lora_inputs=inputs, graphs=tuple(signatures(widths)),
        specs=lambda precision, names=None: Wires(precision, latents, widths).specs(
            modules(told, TORCH[precision], widths, fuser(loras, unet_names(unet)), fitted), names
        ),
    )  # fmt: skip


def modules(
    told: Description, dtype: torch.dtype, widths: Widths, fuse: Fuse | None, fitted: Fit
) -> dict[str, Make]:  # fmt: skip
    """What makes the module of each graph; a component is loaded once. fitted: a linear preview's weights."""
    source = told.source
    vae = cache(lambda: load_vae(source, dtype))
    made: dict[str, Make] = {
        "conditioning": lambda: told.conditioning(dtype, fuse),
        "encoder": lambda: Encoder(vae(), dtype),
        "start": lambda: Start(dtype),
        "denoiser": lambda: denoiser(source, dtype, widths, fuse),
        "solver": lambda: Solver(dtype),
        "decoder": lambda: Decoder(vae(), dtype),
        "preview": lambda: Preview(fitted) if widths.tiny is None else tiny_preview(source / widths.tiny, dtype),
        "guidance": lambda: GuidanceEmbedding(widths.guidance),
    }
    return made


def denoiser(source: Path, dtype: torch.dtype, widths: Widths, fuse: Fuse | None) -> nn.Module:
    """The UNet, with LoRAs added and inputs for more where there are some."""
    unet = load(UNet2DConditionModel, source / "unet", dtype, fuse)
    return Denoiser(unet, widths.added, None if widths.loras is None else take_loras(unet, widths.loras))


def sampling(told: Description, embedded: bool, scheduler: dict[str, Any]) -> tuple[int, float]:
    """Steps and guidance scale by default: of a model that is distilled 4, and 8.5 where it reads the guidance, else 0.

    No config names a Turbo or a Lightning. Both come with an Euler scheduler of trailing timesteps, which those that
    need guidance have together with v-prediction only; generation_config.json overrides it. 4 and 8.5 are the defaults
    of diffusers' LatentConsistencyModelPipeline.
    """
    if embedded:
        return 4, 8.5
    trailing = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("_class_name") in EULER
    distilled = trailing and scheduler.get("prediction_type", "epsilon") == "epsilon"
    return (4, 0.0) if distilled else (told.steps, told.guidance_scale)


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


def check_text(folder: Path, text: dict[str, Any]) -> None:
    """A text encoder is CLIP's. Raises SourceError."""
    if text.get("model_type") not in (None, "clip", "clip_text_model"):
        raise SourceError(
            str(folder), actual=f"model_type {text['model_type']!r}", allowed="CLIP's text encoder",
            remedy="Export a pipeline with CLIP text encoders.",
        )  # fmt: skip
