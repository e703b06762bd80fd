"""Words fill chunks in order, whole where they fit; what finds no room is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tokens import Chunked
from runtime.chunks import Word, chunked

BOUNDED = settings(max_examples=300, derandomize=True, deadline=None, database=None)
BOS, EOS, PAD = 1000, 1001, 1002


def entry(room: int, chunks: int) -> Chunked:
    return Chunked(
        file="x", max_tokens=room + 2, max_chunks=chunks, bos_id=BOS, eos_id=EOS, pad_id=PAD
    )  # fmt: skip


def words(*lengths, weight=1.0):
    """Words of so many tokens, all different; a negative length begins a chunk."""
    numbers = iter(range(1000))
    return [Word(tuple(next(numbers) for _ in range(abs(n))), weight, n < 0) for n in lengths]


def lengths(found):
    """The tokens of text in each chunk."""
    return [int((row < BOS).sum()) for row in found.ids]


@pytest.mark.parametrize(
    ("given", "expected", "dropped"),
    [
        ((), [0], 0), ((1,), [1], 0), ((5,), [5], 0), ((1,) * 5, [5], 0), ((1,) * 6, [5, 1], 0),
        ((3, 3), [3, 3], 0), ((3, 3, 2), [3, 5], 0),  # a word is not torn
        ((7,), [5, 2], 0), ((2, 7), [5, 4], 0),  # but one that no chunk could hold
        ((5, 5, 4, 3), [5, 5, 5], 2), ((20,), [5, 5, 5], 5),  # nor in the last chunk: it is filled as far as it goes
        ((5, 5, 4, 3, 1), [5, 5, 5], 3),  # what comes after a dropped token is dropped
        ((-1, -1), [1, 1], 0), ((2, -1, 1), [2, 2], 0), ((-2,), [2], 0), ((1, -1, -1, -1, 1), [1, 1, 1], 2),
    ],
)  # fmt: skip
def test_how_words_are_shared_out(given, expected, dropped):
    found = chunked(words(*given), entry(5, 3))
    assert (lengths(found), found.dropped, len(found)) == (expected, dropped, len(expected))


def test_each_chunk_has_its_own_specials_whose_weight_is_one():
    found = chunked([*words(2, weight=1.5), Word((7,), 0.5), *words(-1, weight=-2.0)], entry(4, 3))
    assert found.ids.tolist() == [[BOS, 0, 1, 7, EOS, PAD], [BOS, 0, EOS, PAD, PAD, PAD]]
    assert found.weights.tolist() == [[1, 1.5, 1.5, 0.5, 1, 1], [1, -2, 1, 1, 1, 1]]
    assert (found.ids.dtype, found.weights.dtype) == (np.int32, np.float32)


@BOUNDED
@given(st.lists(st.integers(-9, 9).filter(bool), max_size=30), st.integers(1, 6), st.integers(1, 5))
def test_no_token_is_lost_or_moved(given, room, chunks):
    found = chunked(words(*given), entry(room, chunks))
    kept = found.ids[found.ids < BOS].tolist()
    total = sum(map(abs, given))
    assert kept == list(range(len(kept)))
    assert len(kept) + found.dropped == total
    assert len(found) <= chunks
    assert found.ids.shape == found.weights.shape == (len(found), room + 2)
    assert (found.ids[:, 0] == BOS).all()
    assert ((found.ids == EOS).sum(1) == 1).all()
    if not any(n < 0 for n in given) and max(map(abs, given), default=0) == 1:
        assert found.dropped == max(0, total - room * chunks)
