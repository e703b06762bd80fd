"""LoRAs of Z-Image's transformer: which layer a file's key means, and which layers take them with each request.

The names are those that diffusers' own loader takes, which is asked, pair by pair; what it splits or leaves out
(queries, keys and values in one) is refused. Does not know what a LoRA file may hold (engine/lorafile.py).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.loaders import ZImageLoraLoaderMixin

from engine.lorafile import LoraFile
from engine.schema import LoraInputs
from export.lora import DOWN, KOHYA, PEFT, unknown
from export.lora_inputs import inputs_of

TRANSFORMER = "transformer"
PREFIXES = (f"{TRANSFORMER}.{PEFT}", f"{TRANSFORMER}.", PEFT)
"""Before a layer's path in files of diffusers and peft; others are diffusers' to take away."""
LAYER = re.compile(
    r"(?:layers|noise_refiner|context_refiner)\.\d+\."
    r"(?:attention\.to_(?:q|k|v|out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)"
)
"""The linear layers of every block."""


def place_of(file: LoraFile, stem: str, key: str) -> tuple[str, str]:
    """The component and the path in it of the layer that a key means, by diffusers' loader. Raises LoraInvalid."""
    ending = key.removeprefix(stem)
    name = next((stem.removeprefix(one) for one in PREFIXES if stem.startswith(one)), stem)
    up = ending.replace("down", "up").replace("_A", "_B")
    # Three outputs, so that what is split in three becomes three layers.
    pair = {f"{name}{ending}": torch.zeros(1, 1), f"{name}{up}": torch.zeros(3, 1), f"{name}.alpha": torch.ones(())}
    try:
        found = list(ZImageLoraLoaderMixin.lora_state_dict(pair))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise unknown(file, key, f"a name that diffusers does not know ({str(error)[:80]})") from error
    component, _, path = found[0].partition(".")
    if len(found) != 2 or component != TRANSFORMER or not path.endswith(DOWN) or key.startswith(KOHYA[1:]):
        raise unknown(file, key, "a name that means no single layer of the transformer")
    return component, path.removesuffix(DOWN)


def lora_inputs(config: dict[str, Any], rank: int) -> LoraInputs:
    """What bundle.json says of the wire, from the transformer's config alone; no weight is made."""
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel.from_config(config)
    named = [(name, layer) for name, layer in transformer.named_modules() if LAYER.fullmatch(name)]
    return inputs_of(named, aliases_of, rank)


def aliases_of(name: str) -> tuple[str, ...]:
    """The stems by which files name a layer: diffusers' with its prefix and without, peft's, the original model's
    `diffusion_model.` and `attention.out`, kohya's with underscores.
    """
    paths = (name, name.replace(".to_out.0", ".out")) if name.endswith(".to_out.0") else (name,)
    plain = [f"{prefix}{path}" for path in paths for prefix in ("", *PREFIXES, "diffusion_model.")]
    return tuple(plain + [f"lora_unet_{path.replace('.', '_')}" for path in paths])
