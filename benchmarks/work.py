"""What the contenders of a benchmark are asked, and what each turn gives back. Imports no contender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.bundle import load_bundle
from engine.errors import OptionInvalid
from runtime.noise import draws

Settings = Mapping[str, str | int | bool]
"""How a contender runs: its threads, and whatever else it can choose."""
PROMPT = "a cat left of a pizza on white"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One picture to paint, the same for every contender.

    latents: (1, C, H/8, W/8), float32, standard normal. scheduler: our name; class_name and settings: diffusers'.
    """

    bundle: Path
    source: Path
    prompt: str
    height: int
    width: int
    steps: int
    guidance_scale: float
    scheduler: str
    scheduler_class: str
    scheduler_settings: dict[str, Any]
    latents: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One picture painted: wall seconds from prompt to picture, and (H, W, 3) uint8.

    stages: wall seconds by stage, where the contender tells. outside: seconds of the denoising loop that were
    spent outside graph executions, where it has graphs. peak_bytes: the process's largest resident memory so far.
    """

    seconds: float
    picture: NDArray[np.uint8]
    peak_bytes: int
    stages: dict[str, float] = field(default_factory=dict)
    outside: float | None = None


class Contender(Protocol):
    """Something that paints; it lives in a process of its own."""

    def configure(self, settings: Settings) -> None:
        """Take these settings for the turns to come."""

    def paint(self) -> Turn:
        """Paint the work once. peak_bytes may be left 0: the process fills it in."""


def work_from_bundle(folder: Path, *, size_px: int | None, steps: int, seed: int = 0) -> Work:
    """The benchmark's picture for one bundle: its default scheduler and guidance, at size_px (None: its default size).

    Raises BundleError, and OptionInvalid where the source that the bundle was exported from is not there.
    """
    bundle = load_bundle(folder)
    source = (folder / bundle.source.path).resolve()
    if not source.is_dir():
        raise OptionInvalid(
            f"bundle '{bundle.name}', source", actual=f"no folder {source}", allowed="the folder it was exported from",
            remedy="Diffusers needs the same weights: pass --source FOLDER.",
        )  # fmt: skip
    side = bundle.defaults.height if size_px is None else size_px
    shape = (bundle.latents.channels, side // bundle.latents.factor, side // bundle.latents.factor)
    entry = bundle.tables.schedulers[bundle.defaults.scheduler]
    return Work(
        bundle=folder, source=source, prompt=PROMPT, height=side, width=side, steps=steps,
        guidance_scale=bundle.defaults.guidance_scale, scheduler=bundle.defaults.scheduler,
        scheduler_class=entry.class_name, scheduler_settings=dict(entry.settings), latents=draws(seed, 0, 1, shape),
    )  # fmt: skip
