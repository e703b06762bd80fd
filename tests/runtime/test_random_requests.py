"""Thousands of random requests, good and bad mixed: each ends in pictures or in a ZturboError, never in another error.

FIELDS has one entry per field of a Request: add one there when a field is added. Arrays and lists depend on how many
images there are and how large, so their good values are functions of a Draft.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.errors import ZturboError
from runtime.pipeline import Pipeline
from runtime.request import Request

HUGE = st.builds(pow, st.just(10), st.just(5000))  # made when drawn: it has no text
CHANNELS, FACTOR = 4, 8
ODD_TEXTS = (
    "\0",
    "\u202e",
    "e\u0301" * 9,
    "🙂" * 9,
    "北京",
    "\x1b[31m",
    "((((",
    "[" * 99,
    ":1.3)",
    "\\(",
    "<|endoftext|>",
    "﷽",
)


@dataclasses.dataclass(frozen=True)
class Field:
    """good: values that a request takes, beside any good values of the others. bad: mostly values that it refuses."""

    good: st.SearchStrategy[Any]
    bad: st.SearchStrategy[Any]


@dataclasses.dataclass(frozen=True)
class Draft:
    """What arrays and lists are made for: how many images, the latents of one (C, H/8, W/8), its draws of noise."""

    count: int
    latent_shape: tuple[int, ...]
    draws: int


def latents(draft: Draft) -> Any:
    shape = draft.count, *draft.latent_shape
    return np.linspace(-2, 2, math.prod(shape), dtype=np.float32).reshape(shape)


def noise(draft: Draft) -> Any:
    return np.zeros((draft.count, draft.draws - 1, *draft.latent_shape), np.float32)


def listed(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One per image."""
    return st.lists(values, min_size=3, max_size=3).map(PerImage)


class PerImage(list[Any]):
    """Values for three images, of which a draft takes as many as it has."""

    def __call__(self, draft: Draft) -> list[Any]:
        return self[: draft.count]


WRONG_TYPES = st.one_of(
    st.booleans(), st.floats(allow_nan=True), st.binary(max_size=3), st.complex_numbers(), st.just(Decimal(1)),
    st.just(object()), st.just({}), st.just({"a": 1}), st.just([]), st.just([[1]]), st.just(()), st.just(range(10**30)),
    st.just(np.array([1, 2])), st.just(np.float32("nan")), st.just(math.inf), st.just(type), st.just(len),
)  # fmt: skip
ANYTHING = st.one_of(WRONG_TYPES, st.text(st.characters(), max_size=6), st.integers(), HUGE)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(ODD_TEXTS)
LONE = st.sampled_from(("\ud800", "a\udfff", "x" * 4001, None)) | ANYTHING.filter(
    lambda value: not isinstance(value, str)
)
SIZES = st.sampled_from((128, 128, 128, 136, 200, np.int64(144), None))
BAD_SIZES = ANYTHING | st.integers(1, 127) | st.integers(513, 1 << 40) | st.just(129)
SEEDS = st.integers(-1, 2**63 - 1) | st.integers(0, 9).map(np.int32)
SCALES = st.floats(0, 50) | st.sampled_from((0, 1, 50, np.float32(7.5)))
BAD_ARRAYS = st.one_of(
    ANYTHING,
    st.sampled_from([(), (0,), (4, 16, 16), (1, 4, 15, 16), (2, 4, 16, 16, 1), (0, 4, 16, 16), (1, 3, 16, 16)]).map(
        lambda shape: np.zeros(shape, np.float32)
    ),
    st.sampled_from(["float64", "float16", "int32", "uint8", "object", ">f4"]).map(
        lambda t: np.zeros((1, 4, 16, 16), t)
    ),
    st.sampled_from([math.nan, math.inf]).map(lambda value: np.full((1, 4, 16, 16), value, np.float32)),
)
RNG = np.random.default_rng(0)
ARRAYS = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((9, 7), (1, 1, 3), (33, 64, 4))]
IMAGES = [Image.fromarray(array) for array in ARRAYS[1:]] + [
    Image.new(mode, (5, 3)) for mode in ("1", "L", "P", "CMYK")
]
PICTURES = st.sampled_from([*ARRAYS, *IMAGES])
BAD_PICTURES = BAD_ARRAYS | st.sampled_from([ARRAYS[0][None, None], ARRAYS[0][:0], ARRAYS[2][..., :2], "x.png", b"x"])
PAIRS = st.lists(st.integers(1, 65536) | st.just(np.int16(9)), min_size=2, max_size=2).flatmap(
    lambda pair: st.sampled_from((pair, tuple(pair)))
)
BAD_PAIRS = ANYTHING | st.lists(ANYTHING, max_size=3) | st.tuples(ANYTHING, ANYTHING)
NEED_IMAGE = ("mask", "strength")
FIELDS = {
    "prompt": Field(TEXTS.map(lambda text: text or "a cat"), LONE | st.just("")),
    "negative_prompt": Field(TEXTS, LONE),
    "height": Field(SIZES, BAD_SIZES),
    "width": Field(SIZES, BAD_SIZES),
    "num_inference_steps": Field(st.sampled_from((None, 1, 2, 2, 3, np.int8(4))), ANYTHING | st.integers(101, 1 << 70)),
    "guidance_scale": Field(st.none() | SCALES | listed(SCALES), ANYTHING | st.lists(st.floats(), max_size=20)),
    "scheduler": Field(st.none(), ANYTHING | st.sampled_from(("euler/3", "../x", "Euler", "\ud800"))),
    "seed": Field(SEEDS | listed(SEEDS), ANYTHING | st.lists(st.integers(-2, 2**64), max_size=20)),
    "num_images": Field(st.sampled_from((None, 1, 1, 2, 3)), ANYTHING | st.sampled_from((0, 17, -1, 1 << 70))),
    "eta": Field(st.none(), ANYTHING | st.floats()),
    "clip_skip": Field(st.sampled_from((None, 0, 1, np.int8(1))), ANYTHING | st.integers(2, 1 << 70)),
    "emphasis": Field(st.booleans(), ANYTHING.filter(lambda value: not isinstance(value, bool))),
    "image": Field(st.none() | PICTURES, BAD_PICTURES),
    "mask": Field(st.none() | PICTURES, BAD_PICTURES),
    "loras": Field(
        st.sampled_from(((), [])), ANYTHING | st.lists(st.tuples(TEXTS, st.floats()), min_size=1, max_size=3)
    ),
    "strength": Field(st.sampled_from((None, 1, 1.0, np.float32(1))), ANYTHING | st.floats()),
    "original_size": Field(st.none() | PAIRS, BAD_PAIRS),
    "crops_coords_top_left": Field(st.just((0, 0)) | PAIRS, BAD_PAIRS | st.none()),
    "target_size": Field(st.none() | PAIRS, BAD_PAIRS),
    "latents": Field(st.none() | st.just(latents), BAD_ARRAYS),
    "noise": Field(st.none() | st.just(noise), BAD_ARRAYS),
}


@st.composite
def requests(draw: st.DrawFn, pipeline: Pipeline, known: dict[str, Field]) -> dict[str, Any]:
    """Fields of a request: all good in half of the cases, else with one to three that are probably bad."""
    named = draw(st.sets(st.sampled_from(sorted(known))))
    bad = draw(st.just(set()) | st.sets(st.sampled_from(sorted(known)), min_size=1, max_size=3))
    fields = {name: draw(known[name].bad) for name in known if name in bad}
    good = {name: draw(known[name].good) for name in known if name not in bad and name in {*named, "prompt"}}
    if any(good.get(name) is not None for name in ("image", *NEED_IMAGE)):
        good = {"image": ARRAYS[0], **{k: v for k, v in good.items() if k != "image" or v is not None}, "strength": 1.0}
    several = any(isinstance(value, PerImage) for value in good.values())
    count = good.get("num_images") or (draw(st.integers(1, 3)) if several else 1)
    draft = draft_of(pipeline, good, count)
    return {**fields, **{name: value(draft) if callable(value) else value for name, value in good.items()}}


def draft_of(pipeline: Pipeline, good: dict[str, Any], count: int) -> Draft:
    """Sizes and draws as the bundle will understand these fields."""
    defaults = pipeline.bundle.defaults
    filled = {
        name: getattr(defaults, name) if good.get(name) is None else good[name]
        for name in ("height", "width", "num_inference_steps", "scheduler")
    }
    try:
        draws = pipeline._tables.get(filled["scheduler"], int(filled["num_inference_steps"])).draws
    except ZturboError:  # a scheduler that takes other numbers of steps
        draws = 1
    return Draft(count, (CHANNELS, int(filled["height"]) // FACTOR, int(filled["width"]) // FACTOR), draws)


def ends_well(pipeline: Pipeline, fields: dict[str, Any]) -> bool:
    """Whether it ended in pictures, which are then looked at; False for a ZturboError. Raises whatever else it was."""
    refused = None
    try:
        request = Request(**fields)
        result = pipeline.generate(request)
    except ZturboError as error:
        refused = error
    if refused is not None:
        assert all((refused.subject, refused.actual, refused.allowed, refused.remedy))
        assert len(str(refused)) < 2000
        return False
    told = json.loads(json.dumps(result.metadata, allow_nan=False))
    assert result.arrays.shape == (request.num_images, told["height"], told["width"], 3)
    assert result.arrays.dtype == np.uint8
    for index in range(request.num_images):
        json.dumps(result.metadata_of(index), allow_nan=False)
    return True


def run(pipeline: Pipeline, examples: int, known: dict[str, Field]) -> Counter[bool]:
    """How many requests of that many ended in pictures (True) and in typed errors (False)."""
    counted = Counter[bool]()
    schedulers = st.none() | st.sampled_from(sorted(pipeline.bundle.tables.schedulers))
    known = {**known, "scheduler": Field(schedulers, FIELDS["scheduler"].bad)}

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(requests(pipeline, known))
    def each(fields: dict[str, Any]) -> None:
        getattr(pipeline.backend, "events", []).clear()  # the fake counts them with every step
        counted[ends_well(pipeline, fields)] += 1

    each()
    return counted


def test_every_field_has_a_strategy():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Request)}


def test_two_thousand_on_the_fake_backend(pipeline):
    counted = run(pipeline, 2000, FIELDS)
    assert counted.total() >= 2000
    assert min(counted[True], counted[False]) >= counted.total() / 3, counted


def test_sixty_on_onnx_runtime(tiny_bundle):
    """At 128², at most 4 steps and 2 images, where a size or count is not one of the bad ones."""
    known = {
        **FIELDS,
        "height": Field(st.sampled_from((128, np.int16(128))), BAD_SIZES),
        "width": Field(st.just(128), BAD_SIZES),
        "num_images": Field(st.sampled_from((None, 1, 2)), FIELDS["num_images"].bad),
    }
    with Pipeline.load(tiny_bundle, "onnxruntime", threads=1) as pipeline:
        counted = run(pipeline, 60, known)
    assert counted.total() >= 60
    assert min(counted[True], counted[False]) >= counted.total() / 4, counted


@pytest.mark.parametrize("name", FIELDS)
def test_good_values_are_good_and_bad_ones_bad(pipeline, name):
    """Of values drawn for one field alone, all good ones give pictures, and many bad ones an error."""
    ended = Counter[bool]()
    draft = draft_of(pipeline, {}, 2)
    beside = {"image": ARRAYS[0]} if name in NEED_IMAGE else {}

    @settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @given(FIELDS[name].good, FIELDS[name].bad)
    def each(good: Any, bad: Any) -> None:
        value = good(draft) if callable(good) else good
        assert ends_well(pipeline, {"prompt": "a cat", "num_images": 2, **beside, name: value})
        ended[ends_well(pipeline, {"prompt": "a cat", **beside, name: bad})] += 1

    each()
    assert ended[False] >= ended.total() / 3
