"""How samples are shared out to batches: few, even, and of numbers of rows that a backend takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ShapeOutsideProfile
from runtime.batch import split
from runtime.request import Request

BOUNDED = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def rows(sizes, counts):
    """The rows of each group of samples of these sizes."""
    groups = split([SimpleNamespace(rows=size) for size in sizes], counts)
    return [sum(sample.rows for sample in group) for group in groups]


@pytest.mark.parametrize(
    ("sizes", "counts", "expected"),
    [
        ([2] * 5, range(1, 9), [6, 4]),
        ([2] * 5, range(3, 9), [6, 4]),  # filled up, the second group would have 2
        ([2] * 9, range(4, 9), [6, 6, 6]),
        ([2] * 16, range(1, 9), [8, 8, 8, 8]),
        ([2] * 5, [2, 8], [8, 2]),
        ([2] * 6, [2, 8], [8, 2, 2]),
        ([2] * 6, [4], [4, 4, 4]),
        ([1, 2, 2, 1], [3], [3, 3]),
        ([1], range(1, 3), [1]),
        ([1, 1, 1], [2, 1], [2, 1]),
    ],
)
def test_groups_are_few_and_even_and_allowed(sizes, counts, expected):
    assert rows(sizes, counts) == expected


def test_where_no_division_is_allowed_groups_are_still_small_enough(make_pipeline):
    assert rows([2] * 5, range(4, 5)) == [4, 4, 2]
    assert rows([2], [1]) == [2]


def every_division(sizes, counts):
    if not sizes:
        yield []
    for end in range(1, len(sizes) + 1):
        if sum(sizes[:end]) in counts:
            yield from ([sum(sizes[:end]), *rest] for rest in every_division(sizes[end:], counts))


@BOUNDED
@given(st.lists(st.integers(1, 2), min_size=1, max_size=9), st.sets(st.integers(1, 10), min_size=1, max_size=6))
def test_no_division_is_better(sizes, counts):
    found = rows(sizes, counts)
    assert sum(found) == sum(sizes)
    divisions = list(every_division(sizes, counts))
    if divisions:
        assert found in divisions
        assert (len(found), -min(found)) == min((len(one), -min(one)) for one in divisions)


def test_a_rest_too_small_for_a_profile_is_painted(make_pipeline):
    """Nine guided pictures where a batch has 4 to 8 rows: filled up, the last would have 2."""
    pipeline = make_pipeline(row_counts=range(4, 9))
    allocate = pipeline.backend.allocate

    def refusing(binding, dims):
        if not 4 <= dims["rows"] <= 8:
            raise ShapeOutsideProfile("batch", actual=str(dims), allowed="4 to 8 rows", remedy="Build another.")
        return allocate(binding, dims)

    pipeline.backend.allocate = refusing
    images = pipeline.generate(Request(prompt="a cat", num_images=9, num_inference_steps=1)).arrays
    alone = make_pipeline().generate(Request(prompt="a cat", num_images=9, num_inference_steps=1)).arrays
    assert (images == alone).all()
