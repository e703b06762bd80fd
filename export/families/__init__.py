"""One file per model family: its components, their wrappers, shapes and constants."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.binding import Precision
from engine.errors import OptionInvalid, SourceError, ZturboError
from engine.schema import Defaults, Guidance, Latents, Limits, LoraInputs
from export.graph import GraphSpec
from export.source import INDEX, RESAVE, read_index, read_json
from export.unsupported import check_parts, check_pipeline

FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "LatentConsistencyModelPipeline": "lcm",
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "zimage",
}
"""Pipeline classes of diffusers, and the module here that opens them; it is imported when it is needed."""


@dataclass(frozen=True, slots=True)
class FusedLoraFile:
    """A LoRA to add to the weights. sha256: the file's; empty where whatever the file holds is meant."""

    path: Path
    weight: float
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What is asked of a model beside what its folder holds.

    loras: to add to the weights. lora_rank: the greatest rank of LoRAs that the denoiser takes as inputs; 0 for none.
    masked: whether rows of different lengths may share a batch, where the family's prompts are captions of a template.
    """

    loras: tuple[FusedLoraFile, ...] = ()
    lora_rank: int = 0
    masked: bool = False


PLAIN = ModelOptions()
MOST_PX = 2**14


class Specs(Protocol):
    """Makes the graphs of one precision, in the order they run in; names: those alone, None for all."""

    def __call__(self, precision: Precision, names: Collection[str] | None = None) -> tuple[GraphSpec, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A source model, opened by its family.

    components: the folders that its hash covers. tokenizers: those of them that read prompts; all must give the first
    one's ids. graphs: their names, in the order they run in; specs makes those of one precision, or the named ones of
    them, with fresh modules on each call. max_tokens, max_chunks: of a prompt's chunk, and chunks of a prompt; of a
    templated prompt, of the whole, and 1. multiple: what a templated prompt is padded to; None where prompts are
    chunks. masked: as bundle.json has it. vocabulary: how many token ids the conditioning takes. large: whether fp32
    graphs are written on request only. loras: what specs adds to the weights, each with its hash.
    """

    family: str
    source: Path
    components: tuple[str, ...]
    tokenizers: tuple[str, ...]
    latents: Latents
    limits: Limits
    defaults: Defaults
    guidance: Guidance
    guidance_offset: float
    scheduler_config: dict[str, Any]
    max_tokens: int
    max_chunks: int
    max_clip_skip: int
    vocabulary: int
    large: bool
    loras: tuple[FusedLoraFile, ...]
    lora_inputs: LoraInputs | None
    graphs: tuple[str, ...]
    specs: Specs
    multiple: int | None = None
    masked: bool = False

    @property
    def least_tokens(self) -> int:
        """The fewest tokens of a prompt, padding included; every number of them is a multiple of it."""
        return self.max_tokens if self.multiple is None else self.multiple


def open_model(source: Path, options: ModelOptions = PLAIN) -> Model:
    """The model in a diffusers folder, by the pipeline class that model_index.json names.

    Raises SourceError, or LoraInvalid or OptionInvalid for what the options name.
    """
    family = importlib.import_module(f"export.families.{family_of(source)}")
    try:
        model: Model = family.open_model(source, options)
        _check_sane(model)
        _check_masked(model, options)
    except ZturboError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            str(source), actual=f"configs without a usable {error}", allowed="the configs that diffusers saves",
            remedy=RESAVE,
        ) from error  # fmt: skip
    return model


def _check_sane(model: Model) -> None:
    """Raise SourceError for sizes that no model has and that nothing else would stop before memory is taken."""
    limits = model.limits
    facts = {
        "pixels of a latent": (model.latents.factor, 1, 64), "largest side": (limits.max_px, limits.min_px, MOST_PX),
        "smallest side": (limits.min_px, model.latents.factor, MOST_PX), "clip skip": (model.max_clip_skip, 0, 128),
        "tokens": (model.max_tokens, 3, 4096), "vocabulary": (model.vocabulary, 3, 2**20),
        "channels": (model.latents.channels, 1, 1024),
    }  # fmt: skip
    for name, (value, least, most) in facts.items():
        if not least <= value <= most:
            raise SourceError(
                str(model.source), actual=f"configs that make {name} {value}", allowed=f"{least} to {most}",
                remedy=RESAVE,
            )  # fmt: skip


def _check_masked(model: Model, options: ModelOptions) -> None:
    if options.masked and not model.masked:
        raise OptionInvalid(
            "export, masked", actual=f"a mask of captions for family '{model.family}'",
            allowed="a family whose prompts stand in a template, as zimage", remedy="Leave --masked out.",
        )  # fmt: skip


def family_of(source: Path) -> str:
    """The module here that opens a folder. Raises SourceError where there is none."""
    index = read_index(source)
    family = FAMILIES[check_pipeline(source / INDEX, index.get("_class_name"), FAMILIES)]
    check_parts(source / INDEX, index, family)
    if family != "sd":
        return family
    distilled = read_json(source / "unet" / "config.json").get("time_cond_proj_dim") is not None
    return "lcm" if distilled else family
