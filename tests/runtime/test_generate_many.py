"""Mixed requests in batches on ONNX Runtime: what each gives alone, and byte for byte the same in batches of one shape.

64 requests are four times a block of 16, whose guided (2 rows) and unguided (1 row) ones fill three batches of 8 rows.
So batches keep their shapes where requests change places with those of other blocks: they get new neighbours, and, as
the order is turned round too, other places in their batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from runtime.backends.onnxruntime import MAX_ROWS
from runtime.pipeline import Pipeline
from runtime.request import Request

BLOCKS, BLOCK = 4, "GUGUG UGUGG UUUUGG".replace(" ", "")
PROMPTS = ("a cat on red", "a pizza on white", "a small car", "naïve 北京 🙂", "x y z")


@pytest.fixture(scope="module")
def pipeline(tiny_bundle) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, "onnxruntime", threads=2) as pipeline:
        yield pipeline


def mixed(schedulers: list[str]) -> list[Request]:
    """64 requests; no two alike, and in each batch several schedulers, step counts and guidance scales."""
    rng = np.random.default_rng(5)
    return [
        Request(
            prompt=PROMPTS[rng.integers(len(PROMPTS))], negative_prompt=("", "blurry", "a dog")[rng.integers(3)],
            seed=int(rng.integers(2**62)), scheduler=schedulers[rng.integers(len(schedulers))], height=128, width=128,
            num_inference_steps=int(rng.integers(2, 5)),
            guidance_scale=float(rng.choice([1.5, 3.0, 7.5]) if kind == "G" else rng.choice([0.0, 1.0])),
        )
        for kind in BLOCK * BLOCKS
    ]  # fmt: skip


def painted(pipeline: Pipeline, requests: list[Request]) -> list[np.ndarray]:
    return [result.arrays[0] for result in pipeline.generate_many(requests)]


def test_64_in_batches_are_what_they_are_alone_and_bytes_depend_on_the_batchs_shape_only(pipeline, monkeypatch):
    requests = mixed(sorted(pipeline.bundle.tables.schedulers))
    shapes = []
    batches = pipeline._batches
    monkeypatch.setattr(pipeline, "_batches", lambda *a: shapes.append(found := batches(*a)) or found)
    together = painted(pipeline, requests)
    assert [batch.dims["rows"] for batch in shapes[0]] == [MAX_ROWS] * 3 * BLOCKS

    size = len(BLOCK)
    places = [(block + place) % BLOCKS * size + place for block in range(BLOCKS) for place in range(size)][::-1]
    elsewhere = painted(pipeline, [requests[place] for place in places])
    assert all(np.array_equal(one, together[place]) for one, place in zip(elsewhere, places, strict=True))
    there, here = ([(batch.dims["samples"], batch.dims["rows"]) for batch in one] for one in shapes)
    assert here == there[::-1]

    alone = [painted(pipeline, [request])[0] for request in requests]
    distances = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(alone, together, strict=True)]
    assert max(distances) <= 1
    assert len({array.tobytes() for array in together}) == len(requests)


def test_one_request_of_guided_and_unguided_images_is_its_images_alone(pipeline):
    common = {"prompt": PROMPTS[0], "height": 128, "width": 128, "num_inference_steps": 3}
    seeds, scales = (3, 5, 9), (1.0, 7.5, 3.0)
    together = pipeline.generate(Request(**common, seed=seeds, guidance_scale=scales)).arrays
    for one, seed, scale in zip(together, seeds, scales, strict=True):
        alone = painted(pipeline, [Request(**common, seed=seed, guidance_scale=scale)])[0]
        assert np.abs(one.astype(int) - alone.astype(int)).max() <= 1
