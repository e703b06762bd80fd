"""Every field of a Request: each bad value is a RequestInvalid naming the field, the value, what is allowed, a cure."""

from __future__ import annotations

import dataclasses
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidInput, RequestInvalid
from runtime.request import Request

BOUNDED = settings(max_examples=150, derandomize=True, deadline=None, database=None)
ARRAY = np.zeros((1, 4, 16, 16), np.float32)
PIXELS = np.full((8, 9, 3), 200, np.uint8)
HUGE = 10**5000
"""Python refuses to write it in decimal: more than 4300 digits."""

INTEGERS = {
    "height": "an integer from 1 to 65536",
    "width": "an integer from 1 to 65536",
    "num_inference_steps": "an integer from 1 to 100",
    "seed": "an integer from -1 to 9223372036854775807",
    "num_images": "an integer from 1 to 16",
    "clip_skip": "an integer from 0 to 1000",
}
NO_INTEGERS = (True, False, np.True_, 1.0, np.float32(1), "1", b"1", {1}, math.nan, Decimal(1), 1j, -2, HUGE, -HUGE)
MANY = "one value, or 1 to 16: one per image"
TEXT = "text of {} to 4000 characters"
BAD = [
    *[(field, value, allowed) for field, allowed in INTEGERS.items() for value in NO_INTEGERS],
    *[(field, 0, allowed) for field, allowed in INTEGERS.items() if field not in ("seed", "clip_skip")],
    ("clip_skip", 1001, INTEGERS["clip_skip"]),
    *[("emphasis", value, "True or False") for value in (None, 0, 1, "no", np.True_)],
    ("seed", None, INTEGERS["seed"]),
    *[("seed", [3, value], INTEGERS["seed"]) for value in (*NO_INTEGERS, None, [1])],
    *[("seed", value, MANY) for value in ([], (), range(0), range(17), range(10**30), [1] * 17)],
    *[(field, [1], INTEGERS[field]) for field in INTEGERS if field != "seed"],
    ("height", 1 << 17, INTEGERS["height"]),
    ("width", np.int64(1 << 17), INTEGERS["width"]),
    ("num_inference_steps", 101, INTEGERS["num_inference_steps"]),
    ("num_images", 17, INTEGERS["num_images"]),
    ("seed", 2**63, INTEGERS["seed"]),
    ("seed", np.uint64(2**63), INTEGERS["seed"]),
    *[
        ("guidance_scale", value, "a finite number from 0 to 50")
        for value in (
            -1e-9, -1, 50.001, 51, math.nan, math.inf, -math.inf, np.float32("nan"), np.float16("inf"), True, np.False_,
            "5", b"5", {5.0}, 5j, Decimal(5), 10**400, HUGE, np.array([5.0]), [5.0, math.nan], [None], [True], [[5.0]],
            ("5",), [5, -1],
        )
    ],
    *[("guidance_scale", value, MANY) for value in ([], (), [5.0] * 17)],
    *[("prompt", value, TEXT.format(1)) for value in ("", "x" * 4001, None, b"a cat", 7, ["a cat"], "\ud800")],
    *[("negative_prompt", value, TEXT.format(0)) for value in ("x" * 4001, None, b"blurry", 7, "\udcff", "a\udfff")],
    *[("scheduler", value, "a scheduler's name") for value in (7, b"euler", ["euler"])],
    *[
        (field, value, "a float32 numpy array")
        for field in ("latents", "noise")
        for value in (
            [0.0], "noise", ARRAY.astype(np.float64), ARRAY.astype(np.float16), ARRAY.astype(np.int32),
            ARRAY.astype(object), ARRAY.astype(ARRAY.dtype.newbyteorder("S")), np.float32(0),
        )
    ],
    *[
        (field, np.full_like(ARRAY, value), "finite values")
        for field in ("latents", "noise")
        for value in (math.nan, math.inf, -math.inf)
    ],
]  # fmt: skip


PICTURE = "a PIL image, or a uint8 array of (H, W), (H, W, 3) or (H, W, 4)"
BAD += [
    *[("eta", value, "a number from 0 to 1") for value in (-0.1, 1.1, math.nan, "1", True, 1j, HUGE, [1])],
    *[(field, value, PICTURE) for field in ("image", "mask") for value in ("a.png", 7, [0], ARRAY, PIXELS[0, 0])],
    *[
        ("loras", value, "up to 16 pairs of a file and a weight")
        for value in ("a", 7, None, [7], [("a",)], [("", 1)], [("a", 1, 2)], {"a": 1}, [("a", 1)] * 17, HUGE)
    ],
    *[("loras", [("a", value)], "a number from -10 to 10") for value in (11, math.nan, "1", True, None, HUGE)],
    *[
        (field, value, "two integers, (height, width)")
        for field in ("original_size", "crops_coords_top_left", "target_size")
        for value in (
            (),
            (1,),
            [1, 2, 3],
            "12",
            b"12",
            7,
            {1, 2},
            {1: 2, 3: 4},
            np.ones(2, int),
            range(2),
            range(10**30),
        )
    ],
    ("crops_coords_top_left", None, "two integers, (height, width)"),
    *[("crops_coords_top_left", (0, value), "an integer from 0 to 65536") for value in (-1, 65537, *NO_INTEGERS)],
    *[
        (field, [value, 1], "an integer from 1 to 65536")
        for field in ("original_size", "target_size")
        for value in (0, 65537, *NO_INTEGERS, None)
    ],
    *[("strength", value, "a number above 0, to 1") for value in (0, -1, 1.1, math.nan, "1", True, 1j, HUGE, [1])],
]
WITH_IMAGE = {"mask": {"image": PIXELS}, "strength": {"image": PIXELS}}
"""What a field is of no meaning without."""

IDS = [f"{field}-{type(value).__name__}-{k}" for k, (field, value, _) in enumerate(BAD)]
"""Their own, since HUGE has no text."""


@pytest.mark.parametrize(("field", "value", "allowed"), BAD, ids=IDS)
def test_bad_values_are_refused_by_name(field, value, allowed):
    with pytest.raises(RequestInvalid) as caught:
        Request(**{"prompt": "a cat", **WITH_IMAGE.get(field, {}), field: value})
    error = caught.value
    assert error.subject == f"request, {field}"
    assert error.allowed == allowed
    assert error.actual
    assert error.remedy
    assert len(error.actual) <= 60
    assert str(error) == f"request, {field}: got {error.actual}; allowed: {allowed}. {error.remedy}"
    assert isinstance(error, InvalidInput)
    assert isinstance(error, ValueError)


GOT = [
    ("seed", -2, "-2"), ("seed", [1, -2], "-2"), ("guidance_scale", math.nan, "nan"), ("num_images", True, "True"),
    ("height", "256", "'256'"),
    ("scheduler", 7, "7"), ("seed", HUGE, "int of thousands of digits"), ("prompt", None, "NoneType"),
    ("prompt", "", "0 characters"), ("prompt", "x" * 4001, "4001 characters"), ("latents", [0.0], "list"),
    ("prompt", "\ud800", "text that is not UTF-8"), ("noise", ARRAY.astype(np.float64), "float64 array"),
    ("latents", ARRAY * np.nan, "an array with NaN or infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "actual"), GOT, ids=[f"{field}-{actual}" for field, _, actual in GOT])
def test_what_was_got_is_said(field, value, actual):
    with pytest.raises(RequestInvalid) as caught:
        Request(**{"prompt": "a cat", field: value})
    assert caught.value.actual == actual


GOOD = {
    "prompt": ("x", " ", "x" * 4000, "naïve 北京 🙂", "a\0b\n"),
    "negative_prompt": ("", "x" * 4000),
    "height": (None, 1, 65536, np.int16(256), np.uint64(8)),
    "width": (None, 1, 65536),
    "num_inference_steps": (None, 1, 100, np.int8(7), np.uint8(100)),
    "guidance_scale": (None, 0, 50, 0.0, 50.0, np.float16(7.5), np.float64(1), np.int32(3), 5e-324, (1, 7.5)),
    "scheduler": (None, "euler", "anything: the bundle knows"),
    "seed": (0, 2**63 - 1, np.uint64(2**63 - 1), np.int8(1), -1, (3, 5, -1)),
    "num_images": (1, 16, np.int64(2)),
    "clip_skip": (None, 0, 1000, np.int8(2)),
    "emphasis": (True, False),
    "latents": (None, ARRAY),
    "noise": (None, ARRAY[:, :0]),
    "image": (None, PIXELS, PIXELS[..., 0], PIXELS[:1, :1]),
    "mask": (None, PIXELS, PIXELS[..., 0]),
    "eta": (None, 0, 1, 0.5, np.float32(0.25)),
    "loras": ((), (("a", 0.5),), (("a", -10.0), ("b", 10.0))),
    "original_size": (None, (1, 65536)),
    "crops_coords_top_left": ((0, 0), (65536, 1)),
    "target_size": (None, (65536, 1)),
    "strength": (None, 1, 1.0, 5e-324, np.float32(0.5), np.int8(1)),
}


def expected_json(value):
    if isinstance(value, np.ndarray):
        return list(value.shape)
    return [expected_json(one) for one in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("field", GOOD)
def test_limits_themselves_are_allowed_and_are_json(field):
    for value in GOOD[field]:
        request = Request(**{"prompt": "a cat", **WITH_IMAGE.get(field, {}), field: value})
        assert getattr(request, field) is value or (isinstance(value, tuple) and getattr(request, field) == value)
        found = json.loads(json.dumps(request.metadata()))[field]
        assert found == expected_json(value)


def test_sequences_become_tuples_and_say_how_many_images():
    seeds = [3, np.int64(5), 9]
    request = Request(prompt="a cat", seed=seeds)
    seeds.append(11)
    assert (request.seed, request.num_images) == ((3, 5, 9), 3)
    assert Request(prompt="a cat", seed=range(4)).seed == (0, 1, 2, 3)
    assert Request(prompt="a cat", guidance_scale=[3, 7.5]).num_images == 2
    assert Request(prompt="a cat", seed=[3, 5], guidance_scale=[3, 7.5], num_images=2).num_images == 2
    assert Request(prompt="a cat", seed=[-1] * 16).num_images == 16
    assert Request(prompt="a cat").num_images == Request(prompt="a cat", num_images=None).num_images == 1


@pytest.mark.parametrize(
    ("fields", "subject", "actual", "allowed"),
    [
        ({"seed": [3, 5], "num_images": 3}, "seed", "2 of them", "3 (num_images)"),
        ({"seed": [3], "num_images": 2}, "seed", "1 of them", "2 (num_images)"),
        ({"guidance_scale": [3.0, 5.0], "num_images": 1}, "guidance_scale", "2 of them", "1 (num_images)"),
        ({"guidance_scale": [3.0, 5.0], "seed": [1, 2, 3]}, "guidance_scale", "2 of them", "3 (seed)"),
    ],
)
def test_there_is_one_per_image(fields, subject, actual, allowed):
    with pytest.raises(RequestInvalid) as caught:
        Request(prompt="a cat", **fields)
    error = caught.value
    assert (error.subject, error.actual) == (f"request, {subject}", actual)
    assert error.allowed == f"one value, or one per image: {allowed}"


def test_every_field_was_tried():
    fields = {field.name for field in dataclasses.fields(Request)}
    assert fields == {field for field, *_ in BAD} == set(GOOD)


def test_a_request_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request(prompt="a cat").seed = 1


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=8), st.binary(max_size=4),
    st.complex_numbers(), st.lists(st.integers() | st.floats(), max_size=2), st.just(ARRAY),
    st.integers(-128, 127).map(np.int8), st.integers(0, 2**64 - 1).map(np.uint64),
    st.floats(width=32).map(np.float32),
)  # fmt: skip


@BOUNDED
@given(st.sampled_from(sorted(GOOD)), anything)
def test_anything_is_taken_or_refused_by_name(field, value):
    request = None
    try:
        request = Request(**{"prompt": "a cat", **WITH_IMAGE.get(field, {}), field: value})
    except RequestInvalid as error:
        refused = error
    if request is None:
        assert refused.subject == f"request, {field}"
    else:
        json.dumps(request.metadata(), allow_nan=False)


@BOUNDED
@given(st.text(st.characters(), max_size=40))
def test_a_text_is_taken_exactly_where_it_is_utf8(text):
    try:
        text.encode()
        good = 1 <= len(text) <= 4000
    except UnicodeEncodeError:
        good = False
    if good:
        assert Request(prompt=text).prompt == text
    else:
        with pytest.raises(RequestInvalid):
            Request(prompt=text)


@BOUNDED
@given(st.floats(allow_nan=True) | st.integers())
def test_guidance_is_taken_exactly_from_0_to_50(value):
    if 0 <= value <= 50:
        assert Request(prompt="a cat", guidance_scale=value).guidance_scale == value
    else:
        with pytest.raises(RequestInvalid):
            Request(prompt="a cat", guidance_scale=value)
