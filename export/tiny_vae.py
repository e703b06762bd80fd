"""The small decoder of previews, TAESD, where the source brings one: found and checked.

Reads configs alone; what makes a graph of it is the family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import SourceError, shown
from engine.schema import Latents
from export.source import read_index, read_json

TINY = "AutoencoderTiny"
PLACES = ("preview_vae", "taesd", "vae_tiny")
"""Folders beside model_index.json that are looked into, behind those that it calls an AutoencoderTiny."""
MOST = 64
"""Blocks of a decoder, TAESD's being 10: a config is read before anything is known of it."""


def tiny_folder(source: Path, latents: Latents) -> str | None:
    """The name of the folder that holds an AutoencoderTiny for these latents, or None where there is none.

    Raises SourceError for one that is named and missing, or whose decoder takes other latents.
    """
    index = read_index(source)
    named = [name for name, entry in index.items() if name != "vae" and entry == ["diffusers", TINY]]
    for name in dict.fromkeys([*named, *PLACES]):
        if name in named and Path(name).name != name:
            raise _refused(source / "model_index.json", f"a folder of {shown(name)}", "the name of a folder beside it")
        config = source / name / "config.json"
        if name in named or config.is_file():
            fields = read_json(config)
            if fields.get("_class_name") == TINY:
                _check_latents(config, fields, latents)
                return name
    return None


def _check_latents(path: Path, config: dict[str, Any], latents: Latents) -> None:
    try:
        channels, step = int(config["latent_channels"]), int(config.get("upsampling_scaling_factor", 2))
        blocks = [int(count) for count in config["num_decoder_blocks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"a config without a usable {error}", "the config that diffusers saves") from error
    doublings = len(blocks) - 1
    if not (sum(blocks) <= MOST and min(blocks, default=-1) >= 0 and doublings <= MOST and 1 <= step <= MOST):
        raise _refused(path, f"{shown(blocks)} blocks, each enlarging by {step}", f"at most {MOST} in all")
    if (channels, step**doublings) != (latents.channels, latents.factor):
        raise _refused(
            path, f"a decoder of {channels} channels that enlarges by {step**doublings}",
            f"{latents.channels} channels and {latents.factor}, as the model's latents",
        )  # fmt: skip


def _refused(path: Path, actual: str, allowed: str) -> SourceError:
    return SourceError(
        str(path), actual=actual, allowed=allowed, remedy="Take that of this model's kind, or take the folder away."
    )
