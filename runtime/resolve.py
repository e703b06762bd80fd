"""Requests against one bundle: defaults filled in, its limits checked, one Sample per picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.binding import Float32Array
from engine.bundle import Bundle
from runtime.batch import Sample
from runtime.per_image import drawn, noise_key, spread
from runtime.request import Request, request_invalid
from runtime.tables import Table, Tables
from runtime.text import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A request as one bundle understands it, random seeds drawn. latent_shape: (C, H/8, W/8).

    guidance_scale: one value, or a tuple of one per image.
    """

    request: Request
    height: int
    width: int
    steps: int
    guidance_scale: float | tuple[float, ...]
    scheduler: str
    latent_shape: tuple[int, int, int]
    samples: tuple[Sample, ...]

    def metadata(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What was asked with every default filled in, and how many tokens of the prompts were cut off."""
        filled = {
            "height": self.height, "width": self.width, "num_inference_steps": self.steps,
            "guidance_scale": self._guidance_json(), "scheduler": self.scheduler,
        }  # fmt: skip
        texts = {"prompt": self.request.prompt, "negative_prompt": self.request.negative_prompt}
        dropped = {name: tokenizer.dropped_tokens(text) for name, text in texts.items()}
        return {**self.request.metadata(), **filled, "dropped_tokens": dropped}

    def _guidance_json(self) -> float | list[float]:
        return list(self.guidance_scale) if isinstance(self.guidance_scale, tuple) else self.guidance_scale


def resolve(requests: Sequence[Request], bundle: Bundle, tables: Tables) -> list[Resolved]:
    """Check requests against a bundle. Raises RequestInvalid, also where they differ in size or are none."""
    if not requests:
        raise request_invalid("requests", "none", "one or more", "Pass at least one Request.")
    for request in requests:
        if not isinstance(request, Request):
            raise request_invalid("requests", type(request).__name__, "Request objects", "Write Request(prompt=…).")
    resolved = [_resolve(request, bundle, tables) for request in requests]
    sizes = sorted({(one.width, one.height) for one in resolved})
    if len(sizes) > 1:
        named = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise request_invalid("requests, size", named, "one size in a batch", "Generate the other sizes apart.")
    return resolved


def _resolve(request: Request, bundle: Bundle, tables: Tables) -> Resolved:
    if (seed := drawn(request.seed)) != request.seed:
        request = replace(request, seed=seed)
    defaults, factor = bundle.defaults, bundle.latents.factor
    height = _size("height", request.height, defaults.height, bundle)
    width = _size("width", request.width, defaults.width, bundle)
    steps = defaults.num_inference_steps if request.num_inference_steps is None else int(request.num_inference_steps)
    guidance = _guidance(defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale)
    scheduler = defaults.scheduler if request.scheduler is None else request.scheduler
    table = tables.get(scheduler, steps)
    shape = (bundle.latents.channels, height // factor, width // factor)
    _check_shape("latents", request.latents, (request.num_images, *shape))
    _check_shape("noise", request.noise, (request.num_images, table.draws - 1, *shape))
    scales = enumerate(spread(guidance, request.num_images))
    samples = tuple(_sample(request, image, table, scale, bundle) for image, scale in scales)
    return Resolved(request, height, width, steps, guidance, scheduler, shape, samples)


def _guidance(value: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, Sequence) else float(value)


def _sample(request: Request, image: int, table: Table, guidance: float, bundle: Bundle) -> Sample:
    seed, counter = noise_key(request.seed, image)
    return Sample(
        prompt=request.prompt, negative_prompt=request.negative_prompt, table=table,
        guidance_scale=guidance + bundle.guidance_offset, guided=guidance + bundle.guidance_offset > 1,
        seed=seed, image=counter,
        initial=None if request.latents is None else request.latents[image],
        noise=None if request.noise is None else request.noise[image],
    )  # fmt: skip


def _size(name: str, asked: int | None, default: int, bundle: Bundle) -> int:
    value, limits = default if asked is None else int(asked), bundle.limits
    if not limits.allow(value):
        allowed = f"{limits.min_px} to {limits.max_px} in multiples of {limits.multiple_px}"
        raise request_invalid(name, str(value), allowed, f"Bundle '{bundle.name}' was made for these sizes.")
    return value


def _check_shape(name: str, array: Float32Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise request_invalid(
            name, str(array.shape), str(shape), "One array per picture, at the request's size and steps."
        )
