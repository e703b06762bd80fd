"""LoRA files → weights of a loaded component: W + weight · scale · up · down, in float32.

Which module a key means is diffusers' to say: its own loader's conversions of names are asked, pair by pair, so that an
error can name the key. Its other half, which needs peft and gives every layer an adapter before it adds the same
product, is not used. A family brings what asks for its names; the UNet's is here. Does not know what a LoRA file may
hold (engine/lorafile.py), nor when a component is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor, nn

from engine.errors import LoraInvalid, shown
from engine.lorafile import LoraFile, Pair, check_weight
from export.components import Fuse
from export.families import FusedLoraFile

KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
PEFT = "base_model.model."
"""Before the names of a model that peft itself saved."""
UNET, TEXT = "unet", ("text_encoder", "text_encoder_2")
DOWN = ".lora_A.weight"
Place = Callable[[LoraFile, str, str], tuple[str, str]]
"""(file, stem, key) → the component and the path in it of the layer that is meant. Raises LoraInvalid."""


def read_loras(loras: Sequence[FusedLoraFile], components: Sequence[str], place: Place) -> tuple[FusedLoraFile, ...]:
    """Check files before a weight is loaded: what they are, and that all of their keys are of these components.

    Returns them with their hashes. Raises LoraInvalid.
    """
    found = []
    for lora in loras:
        check_weight(str(lora.path), lora.weight)
        file = _opened(lora)
        for pair in file.pairs():
            component, _ = place(file, pair.stem, pair.key)
            if component not in components:
                raise unknown(file, pair.key, f"a layer of {component}, which this model has not")
        found.append(FusedLoraFile(lora.path, float(lora.weight), file.sha256))
    return tuple(found)


def fuser(loras: Sequence[FusedLoraFile], place: Place) -> Fuse | None:
    """What adds these to a component; None where there are none."""
    return partial(fuse, loras=loras, place=place) if loras else None


def fuse(module: nn.Module, component: str, loras: Sequence[FusedLoraFile], place: Place) -> None:
    """Add to a component's weights what the files have for it, in float32. component: its folder's name.

    Raises LoraInvalid, which names the file and the first key that does not fit, and leaves the module half changed.
    """
    for lora in loras:
        file, done = _opened(lora), set[str]()
        for stem in file.stems:
            owner, named = place(file, stem, file.down_key(stem))
            if owner == component:  # the others' matrices are not read
                path = _own_path(module, named)
                if path in done:
                    raise file.refused(file.down_key(stem), f"a second pair for {path}", "one pair to a layer")
                done.add(path)
                _add(module, path, file, file.pair(stem), lora.weight)


def _opened(lora: FusedLoraFile) -> LoraFile:
    file = LoraFile(lora.path)
    if lora.sha256 not in ("", file.sha256):
        raise LoraInvalid(
            str(lora.path), actual=f"sha256 {file.sha256[:12]}…", allowed=f"{lora.sha256[:12]}…",
            remedy="The file changed: export again.",
        )  # fmt: skip
    return file


def unet_names(unet: Mapping[str, Any]) -> Place:
    """Of Stable Diffusion and SDXL. unet: the UNet's config."""
    return partial(_place_of, unet=unet)


def _place_of(file: LoraFile, stem: str, key: str, unet: Mapping[str, Any]) -> tuple[str, str]:
    """The component and the path in it of the module that a key means, by diffusers' loader."""
    ending = key.removeprefix(stem)
    name = key if key.startswith(KOHYA) else _prefixed(stem) + ending
    both = {name: name, name.replace("down", "up").replace("lora_A", "lora_B"): ""}
    if key.startswith(KOHYA):
        both = {f"{stem}.lora_down.weight": "", f"{stem}.lora_up.weight": ""}
    config = SimpleNamespace(layers_per_block=unet.get("layers_per_block", 2))
    try:
        found, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(both, unet_config=config)
        component, _, path = next(iter(found)).partition(".")
        path = _peft_name(component, path)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, StopIteration) as error:
        raise unknown(file, key, f"a name that diffusers does not know ({str(error)[:80]})") from error
    if component not in (UNET, *TEXT) or not path.endswith(DOWN):
        raise unknown(file, key, "a name that diffusers does not know")
    return component, path.removesuffix(DOWN)


def _prefixed(stem: str) -> str:
    """A layer's name as diffusers has it: what has no component is the UNet's."""
    stem = stem.removeprefix(f"{UNET}.").removeprefix(PEFT)
    return stem if stem.startswith(tuple(f"{text}." for text in TEXT)) else f"{UNET}.{stem}"


def _peft_name(component: str, path: str) -> str:
    """The path with `.lora_A.weight` behind it, whatever version of diffusers wrote it."""
    if component == UNET:
        return str(next(iter(convert_unet_state_dict_to_peft({path: ""}))))
    if path.endswith(DOWN):
        return path
    kind = StateDictType.DIFFUSERS if "lora_linear_layer" in path else StateDictType.DIFFUSERS_OLD
    return str(next(iter(convert_state_dict_to_peft({path: ""}, original_type=kind))))


def _own_path(module: nn.Module, path: str) -> str:
    """A text encoder of today's transformers lacks a level that files still name."""
    return path if hasattr(module, "text_model") else path.removeprefix("text_model.")


def _add(module: nn.Module, path: str, file: LoraFile, pair: Pair, weight: float) -> None:
    """Add one pair to one layer's weights."""
    try:
        layer = module.get_submodule(path)
    except AttributeError as error:
        raise unknown(file, pair.key, f"a layer that this model has not, {shown(path)}") from error
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or getattr(layer, "groups", 1) != 1:
        raise unknown(file, pair.key, f"a {type(layer).__name__}, {shown(path)}")
    target = layer.weight
    down, up = (_fitting(torch.from_numpy(matrix), target.ndim) for matrix in (pair.down, pair.up))
    tail = (1,) * (target.ndim - 2)
    if down.shape != (pair.rank, *target.shape[1:]) or up.shape != (target.shape[0], pair.rank, *tail):
        raise file.refused(
            pair.key, f"matrices of {pair.down.shape} and {pair.up.shape}",
            f"{(pair.rank, *target.shape[1:])} and {(target.shape[0], pair.rank, *tail)} for {path}",
            "It was made for another model.",
        )  # fmt: skip
    with torch.no_grad():
        device = target.device
        added = (up.flatten(1).to(device) * (pair.scale * weight)) @ down.flatten(1).to(device)
        target.copy_(target.float() + added.reshape(target.shape))
        if not torch.isfinite(target).all():
            raise file.refused(pair.key, "weights that are not finite once it is added", "finite values")


def _fitting(matrix: Tensor, axes: int) -> Tensor:
    """A matrix with as many axes as the layer's weights, where those that are more or less are of size 1."""
    if matrix.ndim == 2 and axes == 4:
        return matrix[:, :, None, None]
    return matrix.flatten(1) if axes == 2 and matrix.shape[2:] == (1, 1) else matrix


def unknown(file: LoraFile, key: str, actual: str) -> LoraInvalid:
    """The error of a key that names no layer of the model."""
    return file.refused(
        key, actual, "layers of this model, in kohya's, diffusers' or peft's names", "Is it for another model?"
    )
