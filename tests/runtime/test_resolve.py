"""Requests against one bundle: its sizes, its schedulers, the shapes of given arrays, and what it fills in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from engine.errors import RequestInvalid
from runtime.request import Request
from runtime.resolve import resolve
from runtime.tables import Tables
from tests.fake_bundle import edit

BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module")
def opened(bundle_folder):
    bundle = load_bundle(bundle_folder)
    return bundle, Tables(bundle_folder, bundle)


def refused(opened, **fields):
    with pytest.raises(RequestInvalid) as caught:
        resolve([Request(**{"prompt": "a cat", **fields})], *opened)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("field", ["height", "width"])
@pytest.mark.parametrize("value", [1, 8, 120, 127, 129, 132, 511, 513, 520, 65536, np.int32(130)])
def test_sizes_outside_the_bundle(opened, field, value):
    error = refused(opened, **{field: value})
    assert (error.subject, error.actual) == (f"request, {field}", str(value))
    assert error.allowed == "128 to 512 in multiples of 8"


@BOUNDED
@given(st.integers(1, 700), st.integers(1, 700))
def test_sizes_are_taken_exactly_where_the_bundle_allows_them(opened, height, width):
    request = Request(prompt="a cat", height=height, width=width)
    if all(128 <= px <= 512 and px % 8 == 0 for px in (height, width)):
        one = resolve([request], *opened)[0]
        assert (one.height, one.width, one.latent_shape) == (height, width, (4, height // 8, width // 8))
    else:
        with pytest.raises(RequestInvalid):
            resolve([request], *opened)


@pytest.mark.parametrize(
    "name", ["", "Eule", "euler_", "EulerDiscreteScheduler", "dpm", "euler/3", "../euler", "\ud800"]
)
def test_unknown_schedulers(opened, name):
    error = refused(opened, scheduler=name)
    assert (error.subject, error.actual) == ("request, scheduler", repr(name))
    assert error.allowed == "ancestral, euler, multistep"


def test_steps_outside_a_schedulers_range(opened, own_bundle):
    edit(own_bundle, lambda body: body["tables"]["schedulers"]["multistep"].update(min_steps=2, max_steps=101))
    bundle = load_bundle(own_bundle)
    tables = Tables(own_bundle, bundle)
    for steps in (1,):
        error = refused((bundle, tables), scheduler="multistep", num_inference_steps=steps)
        assert error.subject == "request, num_inference_steps with scheduler 'multistep'"
        assert (error.actual, error.allowed) == (str(steps), "2 to 101")
    assert resolve([Request(prompt="x", scheduler="multistep", num_inference_steps=50)], bundle, tables)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        *[("latents", shape) for shape in ((), (4, 16, 17), (1, 4, 16, 17), (3, 4, 16, 17), (0, 4, 16, 17))],
        *[("latents", shape) for shape in ((2, 3, 16, 17), (2, 4, 17, 16), (2, 4, 16, 17, 1))],
        *[("noise", shape) for shape in ((2, 4, 16, 17), (2, 1, 4, 16, 17), (2, 3, 4, 16, 17), (1, 2, 4, 16, 17))],
    ],
)  # fmt: skip
def test_arrays_of_another_shape(opened, field, shape):
    common = {"num_images": 2, "height": 128, "width": 136, "scheduler": "ancestral", "num_inference_steps": 3}
    error = refused(opened, **common, **{field: np.zeros(shape, np.float32)})
    assert (error.subject, error.actual) == (f"request, {field}", str(shape))
    assert error.allowed == ("(2, 4, 16, 17)" if field == "latents" else "(2, 2, 4, 16, 17)")


def test_nothing_to_paint(opened):
    with pytest.raises(RequestInvalid, match="requests: got none; allowed: one or more"):
        resolve([], *opened)


def test_what_is_not_a_request(opened):
    with pytest.raises(RequestInvalid, match="requests: got str; allowed: Request objects"):
        resolve(["a cat"], *opened)


def test_two_sizes(opened):
    requests = [Request(prompt="a", height=128, width=128), Request(prompt="b", height=256, width=128)]
    with pytest.raises(RequestInvalid, match="requests, size: got 128x128, 128x256; allowed: one size"):
        resolve(requests, *opened)


def test_defaults_are_the_bundles(opened):
    one = resolve([Request(prompt="a cat")], *opened)[0]
    assert (one.height, one.width, one.steps, one.guidance_scale, one.scheduler) == (128, 136, 3, 5.0, "euler")


def test_zero_is_no_default(opened):
    one = resolve([Request(prompt="a cat", guidance_scale=0, seed=0)], *opened)[0]
    assert one.guidance_scale == 0.0
    assert not one.samples[0].guided


@pytest.mark.parametrize(("guidance", "guided"), [(0.0, False), (1.0, False), (1.0 + 1e-6, True), (50.0, True)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_guidance_above_one_takes_two_rows(opened, own_bundle, guidance, guided, offset):
    edit(own_bundle, lambda body: body.update(guidance_offset=offset))
    sample = resolve([Request(prompt="x", guidance_scale=guidance)], load_bundle(own_bundle), opened[1])[0].samples[0]
    assert sample.guidance_scale == guidance + offset
    assert sample.guided == (guided if offset == 0 else guidance > 0)
    assert sample.rows == (2 if sample.guided else 1)
