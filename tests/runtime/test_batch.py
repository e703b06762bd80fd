"""How samples are shared out to batches: few, even, and of numbers of rows that a backend takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from engine.errors import ShapeOutsideProfile
from runtime.batch import split
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.fake_backend import FakeBackend

BOUNDED = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def rows(sizes, counts, most_samples=None):
    """The rows of each group of samples of these sizes."""
    groups = split([SimpleNamespace(rows=size) for size in sizes], counts, most_samples)
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


@pytest.mark.parametrize(
    ("sizes", "counts", "most", "expected"),
    [
        ([2] * 4, range(1, 9), 1, [2, 2, 2, 2]),
        ([2] * 5, range(1, 9), 3, [6, 4]),
        ([1] * 8, range(1, 9), 4, [4, 4]),
        ([1] * 3, range(1, 9), 1024, [3]),
        ([2] * 4, [8], 2, [4, 4]),  # a profile for more pictures than are wanted at a time: whoever binds says so
    ],
)
def test_a_group_has_no_more_samples_than_are_wanted(sizes, counts, most, expected):
    assert rows(sizes, counts, most) == expected


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


def test_no_more_pictures_at_a_time_than_are_wanted(pipeline, bundle_folder):
    careful = Pipeline(bundle_folder, load_bundle(bundle_folder), FakeBackend(), max_batch_size=3)
    request = Request(prompt="a cat", num_images=7, num_inference_steps=2, guidance_scale=1)
    assert (careful.generate(request).arrays == pipeline.generate(request).arrays).all()
    assert {dims["samples"] for dims in careful.backend.allocated} == {2, 3}
    assert {dims["samples"] for dims in pipeline.backend.allocated} == {7}
