"""Samples by the length of their prompts: only such of equal length share a batch, so that none is padded for another.

Knows neither tokens nor batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from runtime.batch import Sample
from runtime.request import request_invalid
from runtime.text import Tokenizer

T = TypeVar("T")


def by_length(samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """The indices of the samples whose rows have so many tokens: {tokens: indices}, each in the order given.

    Raises RequestInvalid where the prompts of one sample differ in length, and the bundle cannot tell them apart.
    """
    found: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        own = [tokenizer.length([prompt]) for prompt in sample.prompts]
        if not tokenizer.unequal and len(set(own)) > 1:
            raise request_invalid(
                "prompt, negative_prompt", " and ".join(f"{length} tokens" for length in own) + ", padding included",
                "one padded length: the denoiser reads padding too",
                "Make them about as long, pass guidance_scale=0, or export the model with `--masked`.",
            )  # fmt: skip
        found.setdefault(max(own), []).append(index)
    return found


def in_order(made: Sequence[T], lengths: dict[int, list[int]]) -> list[T]:
    """What was made of the samples length by length, in the order of the samples."""
    places = [index for indices in lengths.values() for index in indices]
    return [one for _, one in sorted(zip(places, made, strict=True), key=lambda pair: pair[0])]
