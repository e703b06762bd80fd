"""What the contenders of a benchmark are asked to paint. Imports no contender."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bundle import load_bundle
from engine.errors import OptionInvalid
from runtime.noise import draws

PROMPT = "a cat left of a pizza on white"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """Pictures to paint of one prompt, the same for every contender.

    latents: (count, C, H/8, W/8), float32, standard normal. scheduler: our name; class_name and settings: diffusers'.
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


def work_from_bundle(folder: Path, *, size_px: int | None, steps: int, seed: int = 0, count: int = 1) -> Work:
    """The benchmark's pictures for one bundle: its default scheduler and guidance, at size_px (None: its default size).

    Picture i is of the noise of (seed, i). Raises BundleError, and OptionInvalid where the source that the bundle was
    exported from is not there, or of a size that it does not take.
    """
    bundle = load_bundle(folder)
    source = (folder / bundle.source.path).resolve()
    if not source.is_dir():
        raise OptionInvalid(
            f"bundle '{bundle.name}', source", actual=f"no folder {source}", allowed="the folder it was exported from",
            remedy="Diffusers needs the same weights: export the bundle again, from where they are.",
        )  # fmt: skip
    limits = bundle.limits
    if size_px is not None and not (0 < size_px <= limits.max_px and size_px % limits.multiple_px == 0):
        raise OptionInvalid(
            f"bundle '{bundle.name}', size", actual=str(size_px),
            allowed=f"up to {limits.max_px} in multiples of {limits.multiple_px}",
            remedy="Leave it out for the bundle's own size.",
        )  # fmt: skip
    width, height = (bundle.defaults.width, bundle.defaults.height) if size_px is None else (size_px, size_px)
    shape = (bundle.latents.channels, height // bundle.latents.factor, width // bundle.latents.factor)
    entry = bundle.tables.schedulers[bundle.defaults.scheduler]
    return Work(
        bundle=folder, source=source, prompt=PROMPT, height=height, width=width, steps=steps,
        guidance_scale=bundle.defaults.guidance_scale, scheduler=bundle.defaults.scheduler,
        scheduler_class=entry.class_name, scheduler_settings=dict(entry.settings),
        latents=latents_of(seed, count, shape),
    )  # fmt: skip


def latents_of(seed: int, count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(count, *shape) standard normal: the initial noise of a request's pictures, as runtime/ draws it."""
    return np.concatenate([draws(seed, image, 1, shape) for image in range(count)])
