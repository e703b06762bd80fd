"""Requests against one bundle: defaults filled in, its limits checked, one Sample per picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.binding import Float32Array
from engine.bundle import Bundle
from engine.wiring import IMAGE
from runtime.batch import Sample
from runtime.loras import Loras, chosen_loras
from runtime.per_image import drawn, noise_key, spread
from runtime.pictures import image_pixels, latent_mask
from runtime.request import Request, request_invalid
from runtime.strength import begin_of, starts_from_noise, strength_of
from runtime.tables import Table, Tables
from runtime.text import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A request as one bundle understands it, random seeds drawn. latent_shape: (C, H/8, W/8).

    guidance_scale: one value, or a tuple of one per image. strength: None without an image.
    """

    request: Request
    height: int
    width: int
    steps: int
    guidance_scale: float | tuple[float, ...]
    scheduler: str
    clip_skip: int
    strength: float | None
    latent_shape: tuple[int, int, int]
    samples: tuple[Sample, ...]

    def metadata(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What was asked with every default filled in, and how many tokens of the prompts were dropped."""
        filled: dict[str, Any] = {
            "height": self.height, "width": self.width, "num_inference_steps": self.steps,
            "guidance_scale": self._guidance_json(), "scheduler": self.scheduler, "clip_skip": self.clip_skip,
            "strength": self.strength,
        }  # fmt: skip
        texts = {"prompt": self.request.prompt, "negative_prompt": self.request.negative_prompt}
        dropped = {name: tokenizer.dropped_tokens(text, self.request.emphasis) for name, text in texts.items()}
        filled["loras"] = [
            {"path": path, "weight": weight, "sha256": packed.sha256}
            for (path, weight), packed in zip(chosen_loras(self.request.loras), self.samples[0].loras, strict=True)
        ]
        return {**self.request.metadata(), **filled, "dropped_tokens": dropped}

    def _guidance_json(self) -> float | list[float]:
        return list(self.guidance_scale) if isinstance(self.guidance_scale, tuple) else self.guidance_scale


def resolve(requests: Sequence[Request], bundle: Bundle, tables: Tables, loras: Loras | None = None) -> list[Resolved]:
    """Check requests against a bundle. loras: what reads and keeps theirs; left out, they are read for this alone.

    Raises RequestInvalid, also where they differ in size or are none; LoraInvalid for a file.
    """
    loras = Loras(bundle.lora_inputs, "float32") if loras is None else loras
    if not requests:
        raise request_invalid("requests", "none", "one or more", "Pass at least one Request.")
    for request in requests:
        if not isinstance(request, Request):
            raise request_invalid("requests", type(request).__name__, "Request objects", "Write Request(prompt=…).")
    resolved = [_resolve(request, bundle, tables, loras) for request in requests]
    sizes = sorted({(one.width, one.height) for one in resolved})
    if len(sizes) > 1:
        named = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise request_invalid("requests, size", named, "one size in a batch", "Generate the other sizes apart.")
    return resolved


def _resolve(request: Request, bundle: Bundle, tables: Tables, loras: Loras) -> Resolved:
    if (seed := drawn(request.seed)) != request.seed:
        request = replace(request, seed=seed)
    defaults, factor = bundle.defaults, bundle.latents.factor
    height = _size("height", request.height, defaults.height, bundle)
    width = _size("width", request.width, defaults.width, bundle)
    steps = defaults.num_inference_steps if request.num_inference_steps is None else int(request.num_inference_steps)
    guidance = _guidance(defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale)
    scheduler = defaults.scheduler if request.scheduler is None else request.scheduler
    eta = None if request.eta is None else float(request.eta)
    strength = strength_of(request)
    if request.image is not None:
        _check_takes_images(bundle)
    image = not starts_from_noise(request, strength)
    begin = begin_of(steps, strength, part_counts=bundle.tables.part_counts)
    table = tables.get(scheduler, steps, eta=eta, begin=begin, image=image)
    shape = (bundle.latents.channels, height // factor, width // factor)
    _check_shape("latents", request.latents, (request.num_images, *shape))
    _check_shape("noise", request.noise, (request.num_images, table.draws - 1, *shape))
    pixels = None if request.image is None else image_pixels(request.image, height, width)
    mask = None if request.mask is None else latent_mask(request.mask, height, width, factor)
    scales = enumerate(spread(guidance, request.num_images))
    plain = [_sample(request, image, table, scale, bundle) for image, scale in scales]
    packed = loras.check(chosen_loras(request.loras), bundle.name)
    samples = tuple(replace(sample, pixels=pixels, mask=mask, loras=packed) for sample in plain)
    clip_skip = _clip_skip(request, bundle)
    return Resolved(request, height, width, steps, guidance, table.name, clip_skip, strength, shape, samples)


def _guidance(value: float | Sequence[float]) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, Sequence) else float(value)


def _sample(request: Request, image: int, table: Table, guidance: float, bundle: Bundle) -> Sample:
    seed, counter = noise_key(request.seed, image)
    scale = guidance + bundle.guidance_offset
    return Sample(
        prompt=request.prompt, negative_prompt=request.negative_prompt, emphasis=request.emphasis,
        clip_skip=_clip_skip(request, bundle), table=table,
        guidance_scale=scale, guided=scale > 1 and bundle.guidance == "classifier_free",
        original=request.original_size, crop=request.crops_coords_top_left, target=request.target_size,
        seed=seed, image=counter,
        initial=None if request.latents is None else request.latents[image],
        noise=None if request.noise is None else request.noise[image],
    )  # fmt: skip


def _clip_skip(request: Request, bundle: Bundle) -> int:
    value, most = 0 if request.clip_skip is None else int(request.clip_skip), bundle.max_clip_skip
    if value > most:
        remedy = f"The text encoder of '{bundle.name}' has {most + 1} layers; 1 takes the last but one."
        raise request_invalid("clip_skip", str(value), f"0 to {most}", remedy)
    return value


def _size(name: str, asked: int | None, default: int, bundle: Bundle) -> int:
    value, limits = default if asked is None else int(asked), bundle.limits
    if not limits.allow(value):
        allowed = f"{limits.min_px} to {limits.max_px} in multiples of {limits.multiple_px}"
        raise request_invalid(name, str(value), allowed, f"Bundle '{bundle.name}' was made for these sizes.")
    return value


def _check_takes_images(bundle: Bundle) -> None:
    """Raise RequestInvalid where no graph reads an image, or the tables do not say how much noise one gets."""
    graphs = next(iter(bundle.variants.values()))
    if not any(IMAGE in graph.only_with for graph in graphs) or not {"u", "v"} <= set(bundle.tables.columns):
        raise request_invalid("image", "an image", f"None: bundle '{bundle.name}' has no encoder", "Export it again.")


def _check_shape(name: str, array: Float32Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise request_invalid(
            name, str(array.shape), str(shape), "One array per picture, at the request's size and steps."
        )
