"""Fields of a request that are one value or one per image: `seed` and `guidance_scale`.

Owns how many images they ask for, how they are shared out to images, and how a random seed is drawn. Which values are
allowed is the request's to say.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from engine.errors import RequestInvalid

RANDOM = -1
RANDOM_SEEDS = 2**53
"""A seed that was drawn is below this: every reader of JSON keeps such integers exactly."""
FIELDS = ("seed", "guidance_scale")


def per_image(name: str, value: Any, check: Callable[[Any], None], most: int) -> Any:
    """The value, or a tuple of them, each checked. Raises RequestInvalid for none and for more than `most`."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        check(value)
        return value
    values = tuple(islice(value, most + 1))
    if not 1 <= len(values) <= most:
        actual = f"more than {most} of them" if values else "an empty sequence"
        raise _refused(name, actual, f"one value, or 1 to {most}: one per image")
    for one in values:
        check(one)
    return values


def image_count(num_images: int | None, fields: Mapping[str, Any]) -> int:
    """How many images a request has: num_images, or where it is left out as many as a field has values, or 1.

    Raises RequestInvalid where a field has another number of values.
    """
    lengths = {name: len(value) for name, value in fields.items() if isinstance(value, tuple)}
    count = next(iter(lengths.values()), 1) if num_images is None else num_images
    for name, length in lengths.items():
        if length != count:
            why = "num_images" if num_images is not None else next(iter(lengths))
            raise _refused(name, f"{length} of them", f"one value, or one per image: {count} ({why})")
    return count if num_images is None else num_images


def spread(value: Any, count: int) -> tuple[Any, ...]:
    """One value per image."""
    return value if isinstance(value, tuple) else (value,) * count


def drawn(seed: Any) -> Any:
    """The seed, or seeds, with a random one in place of each -1."""
    if isinstance(seed, tuple):
        return tuple(drawn(one) for one in seed)
    return secrets.randbelow(RANDOM_SEEDS) if seed == RANDOM else seed


def noise_key(seed: Any, image: int) -> tuple[int, int]:
    """What image `image`'s noise depends on: (seed, image), or (its own seed, 0) where each has one."""
    return (int(seed[image]), 0) if isinstance(seed, tuple) else (int(seed), image)


def of_one_image(metadata: Mapping[str, Any], image: int) -> dict[str, Any]:
    """The metadata of a request that paints this picture as its image `image`.

    With a list of seeds that is a request for this picture alone, so its image is 0.
    """
    own = {name: metadata[name][image] for name in FIELDS if isinstance(metadata.get(name), list)}
    alone = {"num_images": 1, "image": 0} if "seed" in own else {"image": image}
    return {**metadata, **own, **alone}


def _refused(name: str, actual: str, allowed: str) -> RequestInvalid:
    remedy = "Pass one for all images or as many as there are images; num_images may be left out."
    return RequestInvalid(f"request, {name}", actual=actual, allowed=allowed, remedy=remedy)
