"""Which layers of a denoiser take a LoRA with each request, where its matrices lie in the wire, how files name them.

Of a UNet the layers are those of the transformer blocks, which is what kohya, diffusers and peft train by default. Does
not read a LoRA (runtime/loras.py), nor know how a layer uses one (export/lora_layers.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from engine.errors import OptionInvalid
from engine.schema import LoraInputs, LoraLayer
from export.lora_layers import LoraWire, Slot, with_slot

MAX_RANK = 128
ALIGNMENT = 8
"""Columns that a matrix begins at a multiple of: 16 bytes of fp16, which is what tensor cores load at a time."""
LAYER = re.compile(
    r"(?:.+\.)?attentions\.\d+\.(?:proj_in|proj_out"
    r"|transformer_blocks\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
)


def check_rank(rank: int) -> None:
    """Raise OptionInvalid for a rank that is none."""
    if not 0 <= rank <= MAX_RANK:
        raise OptionInvalid(
            "export, lora rank", actual=str(rank), allowed=f"1 to {MAX_RANK}, or 0 for no such inputs",
            remedy="16 takes most LoRAs; the ranks of those that are used together add up.",
        )  # fmt: skip


def lora_inputs(config: dict[str, Any], rank: int) -> LoraInputs:
    """What bundle.json says of the wire, from a UNet's config alone; no weight is made."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    aliases = partial(aliases_of, layers_per_block=unet.config.layers_per_block)
    return inputs_of(layers_of(unet), aliases, rank)


def inputs_of(layers: Iterable[tuple[str, Any]], aliases: Callable[[str], tuple[str, ...]], rank: int) -> LoraInputs:
    """The wire of these layers, by path, side by side in their order. aliases: of a path, the stems that mean it."""
    at, found = 0, []
    for name, layer in layers:
        inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]
        down, up = at, at + _aligned(inputs)
        at = up + _aligned(outputs)
        found.append(LoraLayer(name=name, aliases=aliases(name), inputs=inputs, outputs=outputs, down=down, up=up))
    return LoraInputs(rank=rank, size=at, layers=tuple(found))


def take_loras(denoiser: nn.Module, inputs: LoraInputs) -> LoraWire:
    """Give the layers of a denoiser their slots, in place; what a call finds in the wire is added to it."""
    wire = LoraWire()
    for layer in inputs.layers:
        parent, _, child = layer.name.rpartition(".")
        base = denoiser.get_submodule(layer.name)
        setattr(denoiser.get_submodule(parent), child, with_slot(base, Slot(wire, layer.down, layer.up)))
    return wire


def layers_of(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of the transformer blocks by diffusers' module path: linear ones, and 1×1 convolutions."""
    for name, module in unet.named_modules():
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        if LAYER.fullmatch(name) and (pointwise or isinstance(module, nn.Linear)):
            yield name, module


def aliases_of(name: str, layers_per_block: Any) -> tuple[str, ...]:
    """The stems by which files name a layer: before `.lora_down.weight`, `.lora_A.weight`, `.lora.down.weight` …

    kohya's with underscores, also for the names of the original UNet, which it keeps for SDXL; diffusers' with its
    prefix and without, and its older ones of attention processors; peft's.
    """
    older = re.sub(r"(attn[12])\.to_(q|k|v|out)(?:\.0)?$", r"\1.processor.to_\2_lora", name)
    plain = [name, f"unet.{name}", f"base_model.model.{name}", f"unet.base_model.model.{name}"]
    plain += [older, f"unet.{older}"] if older != name else []
    kohya = [name] if not isinstance(layers_per_block, int) else [name, original_name(name, layers_per_block)]
    return tuple(plain + [f"lora_unet_{one.replace('.', '_')}" for one in kohya])


def original_name(name: str, layers_per_block: int) -> str:
    """The layer's name in the original UNet, whose blocks are counted through and have resnet and attention as 0 and 1.

    After the blocks of a level comes one that changes the size, on the way down as a block of its own.
    """
    kind, *rest = name.split(".")
    if kind == "mid_block":
        return ".".join(["middle_block", "1", *rest[2:]])
    block, attention = int(rest[0]), int(rest[2])
    first = 1 if kind == "down_blocks" else 0
    side = "input_blocks" if first else "output_blocks"
    return ".".join([side, str(first + block * (layers_per_block + 1) + attention), "1", *rest[3:]])


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
