"""One file per model family: its components, their wrappers, shapes and constants."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.binding import Precision
from engine.bundle import Defaults, Latents, Limits
from engine.errors import SourceError
from export.graph import GraphSpec
from export.source import read_index

FAMILIES = {"StableDiffusionPipeline": "sd"}
"""Pipeline classes of diffusers, and the module here that opens them; it is imported when it is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A source model, opened by its family.

    components: the folders that its hash covers. graphs: their names, in the order they run in; specs makes those of
    one precision, with fresh modules on each call. max_tokens, max_chunks: of a prompt's chunk, and chunks of a prompt.
    vocabulary: how many token ids the conditioning takes.
    """

    family: str
    source: Path
    components: tuple[str, ...]
    latents: Latents
    limits: Limits
    defaults: Defaults
    guidance_offset: float
    scheduler_config: dict[str, Any]
    max_tokens: int
    max_chunks: int
    max_clip_skip: int
    vocabulary: int
    graphs: tuple[str, ...]
    specs: Callable[[Precision], tuple[GraphSpec, ...]]


def open_model(source: Path) -> Model:
    """The model in a diffusers folder, by the pipeline class that model_index.json names. Raises SourceError."""
    name = read_index(source).get("_class_name")
    if name not in FAMILIES:
        raise SourceError(
            str(source / "model_index.json"), actual=f"_class_name {name!r}", allowed=", ".join(FAMILIES),
            remedy="Export a supported pipeline; other families follow.",
        )  # fmt: skip
    family = importlib.import_module(f"export.families.{FAMILIES[name]}")
    model: Model = family.open_model(source)
    return model
