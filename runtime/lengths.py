"""Samples by the length of their prompts: only such of equal length share a batch, so that none is padded for another.

Knows neither tokens nor batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from runtime.batch import Sample
from runtime.text import Tokenizer

T = TypeVar("T")


def by_length(samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[int, list[int]]:
    """The indices of the samples whose rows have so many tokens: {tokens: indices}, each in the order given."""
    found: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault(tokenizer.length(sample.prompts), []).append(index)
    return found


def in_order(made: Sequence[T], lengths: dict[int, list[int]]) -> list[T]:
    """What was made of the samples length by length, in the order of the samples."""
    places = [index for indices in lengths.values() for index in indices]
    return [one for _, one in sorted(zip(places, made, strict=True), key=lambda pair: pair[0])]
