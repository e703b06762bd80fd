"""Tokens → chunks, each of which a text encoder reads by itself. Knows neither text nor what the ids mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.binding import Float32Array
from engine.tokens import Chunked

NEUTRAL = 1.0
"""The weight of what counts as it is: of bos, eos and padding always."""


class Word(NamedTuple):
    """The tokens of a word, which belong together. new_chunk: it begins one."""

    ids: tuple[int, ...]
    weight: float
    new_chunk: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A text as an encoder reads it. ids, weights: (chunks, max_tokens). dropped: tokens that found no room."""

    ids: NDArray[np.int32]
    weights: Float32Array
    dropped: int

    def __len__(self) -> int:
        return len(self.ids)


def chunked(words: Iterable[Word], entry: Chunked) -> Chunks:
    """Share words out to chunks of bos, up to max_tokens − 2 tokens, eos and padding; there is at least one chunk.

    A word goes whole to the next chunk where it does not fit; it is torn only if no chunk could hold it, or in the last
    chunk there may be. What comes after max_chunks chunks is dropped and counted.
    """
    filling = _Filling(entry.max_tokens - 2, entry.max_chunks)
    for word in words:
        filling.add(word)
    ids = np.full((len(filling.chunks), entry.max_tokens), entry.pad_id, np.int32)
    weights = np.full(ids.shape, NEUTRAL, np.float32)
    for k, chunk in enumerate(filling.chunks):
        end = 1 + len(chunk)
        ids[k, : end + 1] = [entry.bos_id, *(token for token, _ in chunk), entry.eos_id]
        weights[k, 1:end] = [weight for _, weight in chunk]
    return Chunks(ids, weights, filling.dropped)


class _Filling:
    """Chunks that are being filled, of (id, weight) without specials. dropped: tokens that came when all were full."""

    def __init__(self, room: int, max_chunks: int) -> None:
        self.chunks: list[list[tuple[int, float]]] = [[]]
        self.dropped = 0
        self._room, self._max_chunks, self._closed = room, max_chunks, False

    def add(self, word: Word) -> None:
        """Add a word, to a new chunk where it asks for one, or would fit there and does not here."""
        filled, length = len(self.chunks[-1]), len(word.ids)
        overflows = filled + length > self._room >= length and len(self.chunks) < self._max_chunks
        if overflows or (word.new_chunk and filled):
            self._begin()
        for token in word.ids:
            if len(self.chunks[-1]) == self._room:
                self._begin()
            if self._closed:
                self.dropped += 1
            else:
                self.chunks[-1].append((token, word.weight))

    def _begin(self) -> None:
        """Begin a chunk; where there may be none, nothing more is taken."""
        if len(self.chunks) < self._max_chunks:
            self.chunks.append([])
        else:
            self._closed = True
