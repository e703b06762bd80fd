"""Where a loop begins that starts from an image, as diffusers' pipelines reckon it. Knows no scheduler."""

from __future__ import annotations

from engine.errors import RequestInvalid
from runtime.request import Request

IMAGE_STRENGTH, MASK_STRENGTH = 0.8, 1.0
"""The defaults of diffusers' two pipelines: with an image alone, and with a mask."""


def strength_of(request: Request) -> float | None:
    """The strength that a request asks for; None without an image."""
    if request.image is None:
        return None
    default = IMAGE_STRENGTH if request.mask is None else MASK_STRENGTH
    return default if request.strength is None else float(request.strength)


def begin_of(steps: int, strength: float | None, *, part_counts: bool) -> int:
    """How many of the scheduler's steps are left out. Raises RequestInvalid where none would remain.

    part_counts: whether a strength that ends within a step makes that step.
    """
    if strength is None:
        return 0
    share = min(steps * strength, steps)
    kept = steps - int(steps - share) if part_counts else int(share)
    if kept < 1:
        raise RequestInvalid(
            f"request, strength with {steps} steps", actual=f"{strength:g}", allowed=f"{1 / steps:.3g} to 1",
            remedy="Raise the strength or num_inference_steps: their product is how many steps are made.",
        )  # fmt: skip
    return steps - kept


def starts_from_noise(request: Request, strength: float | None) -> bool:
    """Whether nothing of an image is in the first state: without one, and where diffusers' inpainting begins anew."""
    return strength is None or (request.mask is not None and strength == 1)
