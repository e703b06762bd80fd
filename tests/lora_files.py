"""LoRA files of random values for a model's own modules, in the names of each program that writes them.

Names are written out here once more, apart from export/ and runtime/, so that a mistake there is not repeated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Pair:
    """One layer's matrices. component: unet, text_encoder …; path: of the module in it."""

    component: str
    path: str
    down: Tensor
    up: Tensor
    alpha: float


def unet_layers(unet: nn.Module) -> list[str]:
    """The layers of the transformer blocks that LoRAs are trained for."""
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out")
    return [name for name, _ in unet.named_modules() if "attentions" in name and name.endswith(ends)]


def text_layers(text: nn.Module) -> list[str]:
    return [name for name, _ in text.named_modules() if name.rpartition(".")[2] in TEXT_LAYERS]


def random_pairs(
    component: str, module: nn.Module, paths: Iterable[str], *, rank: int = 4, alpha: float = 2.0, seed: int = 0,
    size: float = 0.3,
) -> list[Pair]:  # fmt: skip
    """Large enough to change a picture of a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for path in paths:
        weight = module.get_submodule(path).weight
        tail = (1, 1) if weight.ndim == 4 else ()
        down = torch.randn(rank, weight.shape[1], *tail, generator=generator) * size
        up = torch.randn(weight.shape[0], rank, *tail, generator=generator) * size
        pairs.append(Pair(component, path, down, up, alpha))
    return pairs


def kohya(pair: Pair) -> tuple[str, str, str]:
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[pair.component]
    stem = f"{prefix}_{_text_path(pair).replace('.', '_')}"
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def kohya_xl(pair: Pair, per_block: int = 1) -> tuple[str, str, str]:
    """As kohya for SDXL: the first of two text encoders is te1, and the UNet's blocks are the original UNet's, counted
    through: 1 + (n + 1)·block + layer on the way down, (n + 1)·block + layer on the way up.
    """
    down, up, alpha = kohya(pair)
    if pair.component == "text_encoder":
        first, second, third = (key.replace("lora_te_", "lora_te1_") for key in (down, up, alpha))
        return first, second, third
    if pair.component != "unet":
        return down, up, alpha
    side, *rest = pair.path.split(".")
    if side == "mid_block":
        stem = f"middle_block_1_{'_'.join(rest[2:])}"
    else:
        at = (per_block + 1) * int(rest[0]) + int(rest[2]) + (side == "down_blocks")
        stem = f"{'input' if side == 'down_blocks' else 'output'}_blocks_{at}_1_{'_'.join(rest[3:])}"
    return f"lora_unet_{stem}.lora_down.weight", f"lora_unet_{stem}.lora_up.weight", f"lora_unet_{stem}.alpha"


def diffusers(pair: Pair) -> tuple[str, str, str]:
    """As diffusers wrote them before it had peft."""
    stem = f"{pair.component}.{_text_path(pair)}"
    word = "lora" if pair.component == "unet" else "lora_linear_layer"
    return f"{stem}.{word}.down.weight", f"{stem}.{word}.up.weight", f"{stem}.alpha"


def peft(pair: Pair) -> tuple[str, str, str]:
    """As diffusers writes them today."""
    stem = f"{pair.component}.{_text_path(pair)}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


def peft_model(pair: Pair) -> tuple[str, str, str]:
    """As peft's own save_pretrained writes those of a UNet."""
    stem = f"base_model.model.{pair.path}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


Names = Callable[[Pair], tuple[str, str, str]]
DIALECTS: dict[str, Names] = {
    "kohya": kohya,
    "diffusers": diffusers,
    "peft": peft,
    "peft_model": peft_model,
    "kohya_xl": kohya_xl,
}


def tensors(pairs: Iterable[Pair], names: Names, *, alpha: bool = True, dtype: str = "fp32") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for pair in pairs:
        down, up, key = names(pair)
        found |= {down: pair.down.to(DTYPES[dtype]), up: pair.up.to(DTYPES[dtype])}
        if alpha:
            found[key] = torch.tensor(pair.alpha, dtype=DTYPES[dtype])
    return {key: value.contiguous() for key, value in found.items()}


def write(path: Path, pairs: Iterable[Pair], names: Names = kohya, **options: Any) -> Path:
    save_file(tensors(pairs, names, **options), path)
    return path


def _text_path(pair: Pair) -> str:
    """Programs write the text encoder's path with the level that transformers had."""
    flat = pair.component != "unet" and not pair.path.startswith("text_model.")
    return f"text_model.{pair.path}" if flat else pair.path


def load(pipeline: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Have diffusers' own loader add files with weights to its pipeline, as lora0, lora1 …"""
    names = [f"lora{k}" for k in range(len(loras))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of a second adapter
        for name, (path, _) in zip(names, loras, strict=True):
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    if names:
        pipeline.set_adapters(names, [weight for _, weight in loras])
