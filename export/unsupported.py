"""Models that no family takes: their pipelines, components and UNets, each refused with what it is and what mends it.

Reads indexes, configs and the names of tensors, as data. Imports no library; schedulers are in refused.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.errors import SourceError, shown
from export.source import UNUSED

BASE = "Export the text-to-image model that it was made from."
OTHER = "Export a supported text-to-image pipeline."
PIPELINES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("ControlNet", "T2IAdapter", "Adapter", "GLIGEN"), "which reads a further picture in its denoiser",
     f"ControlNets and adapters are not supported. {BASE}"),
    (("Inpaint", "Fill", "Outpaint"), "which inpaints",
     f"{BASE} `Request(image=…, mask=…)` inpaints with any."),
    (("Img2Img", "Refiner"), "which begins with a picture",
     f"{BASE} `Request(image=…)` begins with one. Refiners are not supported."),
    (("Pix2Pix", "Upscale", "Depth2Img", "ImageVariation", "Kontext", "Redux", "Edit"),
     "which reads a picture beside the prompt", OTHER),
    (("Video", "AnimateDiff", "Wan", "LTX", "Mochi", "Allegro", "Audio", "Music"), "of videos or sound", OTHER),
    (("StableDiffusion3", "Flux", "PixArt", "Sana", "AuraFlow", "Lumina", "DiT", "QwenImage", "Chroma", "CogView",
      "HiDream", "OmniGen", "Bria"), "a diffusion transformer that is not supported", OTHER),
    (("Kandinsky", "IF", "Wuerstchen", "StableCascade", "UnCLIP", "Kolors", "AltDiffusion", "LDM", "DDPM", "Amused"),
     "with other text encoders, stages or latents than Stable Diffusion's", OTHER),
    (("Onnx", "OV", "ORT", "Flax", "Neuron"), "saved for another library",
     "Export the PyTorch model that it was made from."),
)  # fmt: skip
"""Words in the names of diffusers' pipelines, what such a pipeline is, and what helps; the first that fits is told."""

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd": {
        "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    },
}  # fmt: skip
PARTS["lcm"] = PARTS["sd"]
PARTS["sdxl"] = {
    **PARTS["sd"], "tokenizer_2": PARTS["sd"]["tokenizer"],
    "text_encoder_2": ("CLIPTextModelWithProjection", "CLIPModel"),
}  # fmt: skip
PARTS["zimage"] = {
    "transformer": ("ZImageTransformer2DModel",), "vae": ("AutoencoderKL",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"), "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
}  # fmt: skip
"""The components of each family, and the classes that its index may name for them."""
PREVIEW = "AutoencoderTiny"
"""May lie beside the others under any name (tiny_vae.py)."""

BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
}  # fmt: skip
"""The blocks of Stable Diffusion's UNets; the small ones have none in the middle."""
ABSENT: dict[str, str] = {
    "class_embed_type": "reads a class beside the prompt", "num_class_embeds": "reads a class beside the prompt",
    "encoder_hid_dim_type": "projects what it reads, as with an IP-Adapter",
    "encoder_hid_dim": "projects what it reads, as with an IP-Adapter",
    "dual_cross_attention": "attends to two prompts at once",
}  # fmt: skip
"""Settings that ask for inputs there are not, and what a UNet that has one does."""
ADDED = (None, "text_time")
"""What may be added to the time's embedding: nothing, or SDXL's pooled prompt and sizes."""
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""Of a single checkpoint: the UNet's first layer."""
WHOLE = "a whole model: denoiser, VAE and text encoders in one file, as its configs describe them"
CHECKPOINTS = (
    *((mark, "a LoRA", "Fuse it into the model that it is for: `zturbo export MODEL --lora FILE`.")
      for mark in (".lora_down.", ".lora_A.", ".lora.down.", "lora_linear_layer.down.", ".hada_w1", ".lokr_w")),
    ("control_model.", "a ControlNet", f"ControlNets are not supported. {BASE}"),
    ("controlnet_", "a ControlNet", f"ControlNets are not supported. {BASE}"),
    ("double_blocks.", "the transformer of a Flux model", OTHER),
    ("joint_blocks.", "the transformer of a Stable Diffusion 3 model", OTHER),
    ("ip_adapter.", "an IP-Adapter", f"Adapters are not supported. {BASE}"),
)  # fmt: skip
"""What is in the names of tensors, what such a file is, and what helps."""
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
"""What diffusers' schedulers let a denoiser predict; which of them a scheduler takes is its own to say."""


def check_pipeline(path: Path, name: object, families: Collection[str]) -> str:
    """The name of the class that an index has. Raises SourceError where it is none of the families' pipelines."""
    if isinstance(name, str) and name in families:
        return name
    text = name if isinstance(name, str) else ""
    kind, remedy = next(
        ((kind, remedy) for words, kind, remedy in PIPELINES if any(word in text for word in words)), ("", OTHER)
    )
    raise SourceError(
        str(path), actual=f"_class_name {shown(name)}{kind and ', '}{kind}", allowed=", ".join(families), remedy=remedy
    )


def check_parts(path: Path, index: Mapping[str, Any], family: str) -> None:
    """Raise SourceError where an index names a component that a family has not, or has of another class.

    What is missing is told by who looks for it.
    """
    known = PARTS[family]
    for part, value in index.items():
        kind = value[1] if isinstance(value, list) else None
        if kind is None or part in (*UNUSED, "scheduler") or (kind == PREVIEW and part != "vae"):
            continue
        if kind not in known.get(part, ()):
            raise SourceError(
                str(path), actual=f"{part} of class {kind}",
                allowed=", ".join(known[part]) if part in known else f"the components {', '.join(known)}, scheduler",
                remedy="Name the pipeline's own class in model_index.json: StableDiffusionXLPipeline for SDXL."
                if part in PARTS["sdxl"] and part not in known
                else "Export a pipeline that has no other components; a denoiser takes nothing but LoRAs.",
            )  # fmt: skip


def check_unet(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise SourceError where a UNet reads or is made of what Stable Diffusion's are not. folder: of the UNet."""
    if (name := config.get("_class_name")) not in (None, "UNet2DConditionModel"):
        raise _refused(folder, f"_class_name {shown(name)}", "UNet2DConditionModel")
    for key, what in ABSENT.items():
        if config.get(key):
            raise _refused(folder, f"a UNet that {what} ({key} {shown(config[key])})", f"no {key}")
    if (added := config.get("addition_embed_type")) not in ADDED:
        raise _refused(folder, f"a UNet with added embeddings ({added!r})", "none, or SDXL's 'text_time'")
    for key, allowed in BLOCKS.items():
        found = config.get(key, allowed[0])
        blocks = found if isinstance(found, list) else [found]
        if unknown := [block for block in blocks if block not in allowed]:
            raise _refused(folder, f"{key} with {shown(unknown[0])}", ", ".join(map(str, allowed)))
    for key in ("cross_attention_dim", "sample_size"):
        if isinstance(value := config.get(key, 0), bool) or not isinstance(value, int):
            raise _refused(folder, f"{key} {shown(value)}", "one number")


def check_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SourceError for a single checkpoint that is no model of the families by the names in it.

    shapes: of its tensors. What is none of these kinds may still be no whole model.
    """
    for mark, kind, remedy in CHECKPOINTS:
        if any(mark in name for name in shapes):
            raise SourceError(str(path), actual=kind, allowed=WHOLE, remedy=remedy)
    first = shapes.get(FIRST, ())
    if len(first) == 4 and first[1] == 9:
        raise SourceError(
            str(path), actual="a checkpoint with an inpainting UNet, which takes 9 channels",
            allowed="one that takes the VAE's 4", remedy=f"{BASE} `Request(image=…, mask=…)` inpaints with any.",
        )  # fmt: skip


def check_width(folder: Path, unet: Mapping[str, Any], hidden: object) -> None:
    """Raise SourceError where the UNet reads states of another width than the text encoder makes."""
    if (width := unet.get("cross_attention_dim")) != hidden:
        raise _refused(
            folder, f"cross_attention_dim {shown(width)}", f"{shown(hidden)}, the hidden_size of the text encoder"
        )


def check_latents(folder: Path, vae: Mapping[str, Any]) -> None:
    """Raise SourceError for latents that are normalized by more than scaling_factor. folder: of the VAE."""
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise SourceError(
                str(folder), actual=f"{key} {shown(vae[key])}", allowed="latents scaled by scaling_factor alone",
                remedy=f"A mean and a deviation of each channel are not supported. {OTHER}",
            )  # fmt: skip


def check_prediction(path: Path, scheduler: Mapping[str, Any]) -> None:
    """Raise SourceError for what no denoiser predicts. path: of scheduler_config.json."""
    if (found := scheduler.get("prediction_type", PREDICTIONS[0])) not in PREDICTIONS:
        raise SourceError(
            str(path), actual=f"prediction_type {shown(found)}", allowed=", ".join(PREDICTIONS),
            remedy="Write there what the model was trained to predict.",
        )  # fmt: skip


def _refused(folder: Path, actual: str, allowed: str) -> SourceError:
    return SourceError(
        str(folder), actual=actual, allowed=allowed, remedy="Export a model with the UNet of SD 1.x, SD 2.x or SDXL."
    )
