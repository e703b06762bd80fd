"""Long and weighted prompts, from text to final latents, against diffusers' pipeline fed embeddings made apart."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.independent import Encoder

COMMON = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0}
LONG = "a cat " * 60
"""120 tokens, each a word, so that every 75 of them fill a chunk."""
NOISE = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tiny_source) -> Encoder:
    return Encoder(tiny_source)


@pytest.fixture(scope="module", params=["onnxruntime", "pytorch"])
def pipeline(request, tiny_bundle):
    with Pipeline.load(tiny_bundle, request.param, precision="fp32", device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def onnxruntime(tiny_bundle):
    with Pipeline.load(tiny_bundle, "onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


def final_latents(pipeline, request):
    found = []
    pipeline.generate(request, lambda step: found.append(step.latents()))
    return found[-1]


def test_a_long_prompt_is_its_chunks_one_after_another(pipeline, encoder):
    """The unguided half has one chunk of text and one of nothing. fp32 through three steps of a UNet: 1e-4."""
    cond, uncond = encoder.ids(LONG, 2), encoder.ids("blurry", 2)
    ones = np.ones(cond.shape)
    expected = encoder.latents(encoder.weighted(cond, ones), encoder.weighted(uncond, ones), NOISE, 3, 3.0)
    request = Request(prompt=LONG, negative_prompt="blurry", latents=NOISE, **COMMON)
    found = final_latents(pipeline, request)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    short = final_latents(pipeline, Request(prompt=LONG[:30], negative_prompt="blurry", latents=NOISE, **COMMON))
    assert np.abs(short - expected).max() > 1e-3


def test_emphasis_is_that_of_an_independent_computation(pipeline, encoder):
    """`a` and `cat` are one token each: bos a cat eos."""
    cond, uncond = encoder.ids("a cat", 1), encoder.ids("", 1)
    weights = np.ones(cond.shape)
    weights[0, 2] = 1.4
    embeddings = encoder.weighted(cond, weights), encoder.weighted(uncond, np.ones(cond.shape))
    expected = encoder.latents(*embeddings, NOISE, 3, 3.0)
    found = final_latents(pipeline, Request(prompt="a (cat:1.4)", latents=NOISE, **COMMON))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    plain = final_latents(pipeline, Request(prompt="a cat", latents=NOISE, **COMMON))
    assert np.abs(plain - expected).max() > 1e-3


def test_clip_skip_is_diffusers(pipeline, encoder):
    for skip in (1, 2):
        cond, uncond = encoder.encode_prompt(["a cat"], skip), encoder.encode_prompt([""], skip)
        expected = encoder.latents(cond, uncond, NOISE, 3, 3.0)
        found = final_latents(pipeline, Request(prompt="a cat", clip_skip=skip, latents=NOISE, **COMMON))
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_mixed_lengths_are_byte_equal_to_their_serial_runs(onnxruntime):
    """Two short prompts and two long ones in one call, against a call for each length: batches of equal shape."""
    asked = [
        {"prompt": LONG}, {"prompt": "a (cat)", "clip_skip": 1}, {"prompt": "a mat"}, {"prompt": f"{LONG} (cat:1.2)"}
    ]  # fmt: skip
    requests = [Request(**COMMON, **one, seed=k, scheduler="euler") for k, one in enumerate(asked)]
    together = [result.arrays for result in onnxruntime.generate_many(requests)]
    for same in ((0, 3), (1, 2)):
        serial = onnxruntime.generate_many([requests[k] for k in same])
        assert all(np.array_equal(together[k], one.arrays) for k, one in zip(same, serial, strict=True))
    for request, one in zip(requests, together, strict=True):
        alone = onnxruntime.generate(request).arrays.astype(int)
        assert np.abs(alone - one.astype(int)).max() <= 1


def test_nothing_is_dropped_silently(onnxruntime):
    dropped = onnxruntime.generate(Request(prompt="x y " * 320, **COMMON)).metadata["dropped_tokens"]
    assert dropped == {"prompt": 640 - 8 * 75, "negative_prompt": 0}
