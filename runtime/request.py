"""What a caller asks: one frozen Request, validated once where it is made.

Knows the limits that hold for every model; those of one bundle are the pipeline's to check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.binding import Float32Array
from engine.errors import RequestInvalid, shown
from runtime.loras import chosen_loras
from runtime.per_image import RANDOM, image_count, per_image
from runtime.pictures import Picture, check_mask, check_picture

MAX_PROMPT_CHARACTERS = 4000
MAX_IMAGES = 16
MAX_STEPS = 100
MAX_GUIDANCE = 50.0
MAX_CLIP_SKIP = 1000
MAX_SEED = 2**63 - 1
MAX_TOLD_PX = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt and how to paint it; names and meanings are diffusers'. None takes the bundle's default.

    scheduler: our name, diffusers' class name or a web UI's ("DPM++ 2M Karras"); case does not matter.
    eta: 0 to 1, how much noise DDIM's steps draw (TCD's gamma); others take none.
    prompt: 1 to 4000 characters. negative_prompt: up to 4000; only a guided request (guidance_scale > 1) uses it.
    emphasis: False takes both texts literally, without (word:1.3), [word] and BREAK (runtime/prompt.py).
    clip_skip: how many of the text encoder's last layers are left out; the web UIs' "2" is 1 here.
    height, width: pixels. seed: 0 to 2⁶³ − 1, and image i's noise depends on (seed, i) alone; or one per image, whose
    noise is that of (seedᵢ, 0). -1 is a random one, drawn when the request is painted; the result's metadata tells it.
    guidance_scale: one value, or one per image. num_images: left out, as many as there are seeds or guidance scales, or
    1; always an int once the request is made, as sequences are tuples then.
    latents: (num_images, C, H/8, W/8), float32, standard normal, the initial noise instead of the seed's.
    noise: (num_images, draws, C, H/8, W/8), float32, what the scheduler's steps draw, instead of the seed's.
    image: what to begin from, a PIL image or a uint8 array of (H, W), (H, W, 3) or (H, W, 4), of any size: it is turned
    as its EXIF says, laid on white where it has alpha, and resized to height × width without keeping its proportions.
    mask: as image, white where to paint and black where the image stays; laid on black where it has alpha.
    strength: above 0, to 1: how much of the image is painted over, int(strength · num_inference_steps) steps of them;
    None: 0.8, with a mask 1, which begins from noise alone.
    original_size, target_size: (height, width) that SDXL's denoiser is told, None for the picture's own;
    crops_coords_top_left: where a crop began, (0, 0) for none; both rows are told the same. Other families read none.
    loras: files and weights, `[("style.safetensors", 0.8)]`, or files alone for a weight of 1; for bundles that were
    exported with a rank for them. Always a tuple of (str, float) once the request is made.
    Raises RequestInvalid.
    """

    prompt: str
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | Sequence[float] | None = None
    scheduler: str | None = None
    eta: float | None = None
    seed: int | Sequence[int] = 0
    num_images: int = None  # type: ignore[assignment]  # only until __post_init__
    clip_skip: int | None = None
    emphasis: bool = True
    latents: Float32Array | None = None
    noise: Float32Array | None = None
    image: Picture | None = None
    mask: Picture | None = None
    strength: float | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    loras: Sequence[tuple[str | Path, float] | str | Path] = ()

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt, minimum=1)
        _check_text("negative_prompt", self.negative_prompt, minimum=0)
        for name in ("height", "width"):
            _check_integer(name, getattr(self, name), 1, 1 << 16, optional=True)
        _check_integer("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS, optional=True)
        _check_integer("num_images", self.num_images, 1, MAX_IMAGES, optional=True)
        self._settle_images()
        _check_integer("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP, optional=True)
        if not isinstance(self.emphasis, bool):
            raise request_invalid("emphasis", shown(self.emphasis), "True or False", "False takes prompts literally.")
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise request_invalid(
                "scheduler", shown(self.scheduler), "a scheduler's name", "See `zturbo inspect BUNDLE`."
            )
        _check_eta(self.eta)
        for name in ("latents", "noise"):
            _check_array(name, getattr(self, name))
        _check_pictures(self.image, self.mask, self.strength)
        object.__setattr__(self, "loras", chosen_loras(self.loras))
        for name, low in (("original_size", 1), ("crops_coords_top_left", 0), ("target_size", 1)):
            object.__setattr__(self, name, _pair(name, getattr(self, name), low))

    def _settle_images(self) -> None:
        """Sequences become tuples, so that nobody changes them later, and num_images an integer."""
        settled: dict[str, Any] = {"seed": per_image("seed", self.seed, _check_seed, MAX_IMAGES)}
        if self.guidance_scale is not None:
            settled["guidance_scale"] = per_image("guidance_scale", self.guidance_scale, _check_guidance, MAX_IMAGES)
        settled["num_images"] = image_count(self.num_images, settled)
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def metadata(self) -> dict[str, Any]:
        """The request as JSON types; arrays are named by their shapes."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: _json(v) for k, v in values.items()}


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    if isinstance(value, np.ndarray):
        return list(value.shape)
    if isinstance(value, Image.Image):
        return [value.height, value.width, len(value.getbands())]
    return value.item() if isinstance(value, np.generic) else value


def _check_text(name: str, value: object, *, minimum: int) -> None:
    allowed = f"text of {minimum} to {MAX_PROMPT_CHARACTERS} characters"
    if not isinstance(value, str):
        raise request_invalid(name, f"{type(value).__name__}", allowed, "Pass a str.")
    if not minimum <= len(value) <= MAX_PROMPT_CHARACTERS:
        raise request_invalid(name, f"{len(value)} characters", allowed, "Shorten it, or write one.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise request_invalid(name, "text that is not UTF-8", allowed, "Decode it before passing it.") from error


def _check_integer(name: str, value: object, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise request_invalid(name, shown(value), f"an integer from {low} to {high}", "Pass a value in that range.")


def _pair(name: str, value: object, low: int) -> tuple[int, int] | None:
    """Two integers as a tuple, or None where that is allowed."""
    if value is None and low:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:  # bytes and ranges are sequences of integers too
        raise request_invalid(name, shown(value), "two integers, (height, width)", "Pass a pair, or leave it out.")
    for one in value:
        _check_integer(name, one, low, MAX_TOLD_PX)
    return int(value[0]), int(value[1])


def _check_seed(value: object) -> None:
    _check_integer("seed", value, RANDOM, MAX_SEED)


def _check_guidance(value: object) -> None:
    if not _is_number(value) or not 0 <= value <= MAX_GUIDANCE:  # type: ignore[operator]
        allowed = f"a finite number from 0 to {MAX_GUIDANCE:g}"
        raise request_invalid("guidance_scale", shown(value), allowed, "1 or less turns guidance off.")


def _check_eta(value: object) -> None:
    if value is not None and not (_is_number(value) and 0 <= value <= 1):  # type: ignore[operator]
        raise request_invalid("eta", shown(value), "a number from 0 to 1", "0 draws no noise in the steps, 1 most.")


def _check_array(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise request_invalid(name, kind, "a float32 numpy array", "Convert it with `.astype(np.float32)`.")
    if not np.isfinite(value).all():
        raise request_invalid(name, "an array with NaN or infinity", "finite values", "Check where it was made.")


def _check_pictures(image: object, mask: object, strength: object) -> None:
    """An image alone or with a mask; strength is of no meaning without one."""
    for field, value, check in (("image", image, check_picture), ("mask", mask, check_mask)):
        if value is not None:
            check(field, value)
    for field, value in (("mask", mask), ("strength", strength)):
        if value is not None and image is None:
            raise request_invalid(field, f"a {field} without an image", "None without an image", "Pass an image too.")
    if strength is not None and (not _is_number(strength) or not 0 < strength <= 1):  # type: ignore[operator]
        allowed = "a number above 0, to 1"
        raise request_invalid("strength", shown(strength), allowed, "Less keeps more of the image.")


def _is_number(value: object) -> bool:
    """Python's or numpy's; a bool is none."""
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def request_invalid(field: str, actual: str, allowed: str, remedy: str) -> RequestInvalid:
    """The error of one field of a request."""
    return RequestInvalid(f"request, {field}", actual=actual, allowed=allowed, remedy=remedy)
