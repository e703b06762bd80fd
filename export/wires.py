"""The bindings of the graphs that SD's families have in common: every wire is described once.

Knows neither what the modules compute nor how they are traced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.binding import Axis, Binding, DType, Lifetime, Precision
from engine.schema import Latents, LoraInputs
from engine.wiring import LORA, host_wires
from export.graph import GraphSpec
from export.solver import COLUMNS, HISTORY, ROWS
from export.unet import GUIDED, POOLED, TIME_IDS

PROMPT = ("input_ids", "token_weights", "clip_skip")
"""What the conditioning is made of, row by row."""
TOKENS = "token_weights"
BY_ROW = (*PROMPT, TIME_IDS)
TORCH = {"fp32": torch.float32, "fp16": torch.float16}
NUMPY: dict[Precision, DType] = {"fp32": "float32", "fp16": "float16"}
EXACT = ("start", "solver", "preview", "guidance")
"""Graphs that compute in fp32 at every precision."""
ONLY_WITH: dict[str, tuple[str, ...]] = {"encoder": ("image",)}
Make = Callable[[], nn.Module]
Signature = tuple[Any, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Features of what the denoiser reads: of the prompt's states, of the pooled prompt and of the guidance's
    embedding, 0 where it reads none; loras: the low-rank inputs, or None. tiny: the folder of the preview's own
    decoder, or None. captions: whether prompts are captions, whose ids are all that the conditioning reads, and the
    denoiser is told which of their tokens are padding. hollow: the graphs that are traced without their weights.
    """

    hidden: int
    pooled: int = 0
    guidance: int = 0
    loras: LoraInputs | None = None
    tiny: str | None = None
    captions: bool = False
    hollow: tuple[str, ...] = ()

    @property
    def added(self) -> tuple[str, ...]:
        """The wires that the denoiser reads beside sample, timestep and encoder_hidden_states, in order."""
        pooled = (POOLED, TIME_IDS) if self.pooled else ()
        captions = (TOKENS,) if self.captions else ()
        return (*captions, *pooled, *((GUIDED,) if self.guidance else ()), *((LORA,) if self.loras is not None else ()))


class Wires:
    """The bindings of a family's graphs at one precision."""

    def __init__(self, precision: Precision, latents: Latents, widths: Widths) -> None:
        self._precision, self._widths = precision, widths
        model, channels, factor = NUMPY[precision], latents.channels, latents.factor
        latent: tuple[Axis, ...] = (channels, f"height/{factor}", f"width/{factor}")
        size: tuple[Axis, ...] = latent[1:] if widths.tiny is None else ("height", "width")
        entries: dict[str, tuple[DType, tuple[Axis, ...], Lifetime]] = {
            "encoder_hidden_states": (model, ("rows", "tokens", widths.hidden), "per_row"),
            POOLED: (model, ("rows", widths.pooled), "per_row"),
            GUIDED: ("float32", ("rows", widths.guidance), "per_sample"),
            "latents": ("float32", ("samples", *latent), "carried"),
            "history": ("float32", ("samples", HISTORY, *latent), "carried"),
            "row": ("int32", ("samples",), "carried"),
            "sample": (model, ("rows", *latent), "transient"),
            "timestep": ("float32", ("rows",), "transient"),
            "noise_pred": (model, ("rows", *latent), "transient"),
            "images": ("uint8", ("samples", "height", "width", 3), "transient"),
            "image_latents": ("float32", ("samples", *latent), "per_sample"),
            "preview": ("uint8", ("samples", *size, 3), "transient"),
        }
        for name in ("latents", "history", "row"):
            entries[f"next_{name}"] = entries[name]
        for name, wire in host_wires(channels, factor, ROWS, len(COLUMNS)).items():
            entries[name] = (*wire, "per_row" if name in BY_ROW else "per_sample")
        if widths.loras is not None:  # per_sample: no part of the conditioning, so that K and V stay hoisted
            entries[LORA] = (*widths.loras.wire(precision), "per_sample")
        self.bindings = {
            name: Binding(name=name, dtype=dtype, shape=shape, lifetime=lifetime)
            for name, (dtype, shape, lifetime) in entries.items()
        }

    def specs(self, made: Mapping[str, Make], names: Collection[str] | None = None) -> tuple[GraphSpec, ...]:
        """The graphs of modules, by name, in the order of `signatures`. made: makes them; names: None for all."""
        wanted = [name for name in signatures(self._widths) if names is None or name in names]
        return tuple(self.spec(name, made[name]().eval()) for name in wanted)

    def spec(self, name: str, module: nn.Module) -> GraphSpec:
        """One graph with these bindings; those of EXACT compute in fp32 at every precision."""
        stage, inputs, outputs = signatures(self._widths)[name]
        exact = name in EXACT and not (name == "preview" and self._widths.tiny)
        own: Precision = "fp32" if exact else self._precision
        carried = {n.removeprefix("next_"): n for n in outputs if n.startswith("next_")}
        pick = self.bindings.__getitem__
        return GraphSpec(
            name=name, stage=stage, module=module, precision=own, carried=carried,
            inputs=tuple(map(pick, inputs)), outputs=tuple(map(pick, outputs)), only_with=ONLY_WITH.get(name, ()),
            exact=exact, hollow=name in self._widths.hollow,
        )  # fmt: skip


def signatures(widths: Widths) -> dict[str, Signature]:
    """(stage, inputs, outputs) of each graph, in the order they run in."""
    states = ("encoder_hidden_states", POOLED) if widths.pooled else ("encoder_hidden_states",)
    guidance: dict[str, Signature] = {"guidance": ("once", ("guidance_scale", "sample_of_row"), (GUIDED,))}
    return {
        "conditioning": ("once", PROMPT[:1] if widths.captions else PROMPT, states),
        "encoder": ("once", ("image", "image_noise"), ("image_latents",)),
        **(guidance if widths.guidance else {}),
        "start": (
            "once",
            ("table", "noise", "image_latents", "sample_of_row"),
            ("latents", "history", "row", "sample", "timestep"),
        ),
        "denoiser": ("loop", ("sample", "timestep", "encoder_hidden_states", *widths.added), ("noise_pred",)),
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
