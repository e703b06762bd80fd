"""Z-Image's whole loop on ONNX Runtime, beside diffusers' own pipeline with the same arrays in, fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from engine.errors import RequestInvalid
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.zimage_pipeline import CHANNELS, Theirs

TOLERANCE = 1e-4
"""Relative, of the latents at the end: fp32 sums in another order, over some steps. Up to 1.3e-6 was seen."""
WORDS = {3: "a", 40: "a photo of a cat on a white sofa, ", 250: "two cats and a dog; ", 500: "oil painting 35 mm, "}
"""Texts by about how many tokens they have, the template's apart."""
SIZES = [(128, 128), (144, 80)]
"""Height and width; the second has 45 tokens of an image, which are filled up."""


@pytest.fixture(scope="module")
def plain(zimage_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(zimage_bundle, "onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def masked(zimage_masked: Path) -> Iterator[Pipeline]:
    with Pipeline.load(zimage_masked, "onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def theirs(zimage_source: Path) -> Theirs:
    return Theirs(zimage_source)


def text(tokens: int, source: Theirs) -> str:
    """A text of about so many tokens."""
    tokenizer, words = source.pipeline.tokenizer, WORDS[tokens]
    return words * max(1, tokens // len(tokenizer(words).input_ids))


def asked(prompt: str = "a cat", *, seed: int = 0, steps: int = 4, images: int = 1, **options: Any) -> Request:
    """A request that brings its own noise."""
    height, width = options.pop("height", 128), options.pop("width", 128)
    shape = images, CHANNELS, height // 8, width // 8
    latents = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Request(
        prompt=prompt, num_inference_steps=steps, height=height, width=width, num_images=images, latents=latents,
        **{"guidance_scale": 0.0, **options},
    )  # fmt: skip


def found(pipeline: Pipeline, requests: list[Request]) -> np.ndarray:
    """The latents that we end with: each batch's when its last step is done, in the order they are painted in."""
    last: list[np.ndarray] = []
    steps = requests[0].num_inference_steps
    assert steps is not None
    pipeline.generate_many(requests, lambda step: last.append(step.latents()) if step.index % steps == 0 else None)
    return np.concatenate(last)


def check(ours: Pipeline, theirs: Theirs, requests: list[Request]) -> None:
    wanted, latents = theirs.latents(requests), found(ours, requests)
    assert latents.shape == wanted.shape
    error = np.linalg.norm(latents - wanted) / np.linalg.norm(wanted)
    print(f"error {error:.2e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 4, 8, 9])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_steps_sizes_and_guidance(
    plain: Pipeline, theirs: Theirs, steps: int, height: int, width: int, guidance: float
) -> None:
    """Below about 20 tokens of text a caption and an empty negative prompt have 32 tokens each."""
    check(plain, theirs, [asked(steps=steps, height=height, width=width, guidance_scale=guidance)])


@pytest.mark.parametrize("tokens", WORDS)
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_captions_of_any_length(request: pytest.FixtureRequest, theirs: Theirs, kind: str, tokens: int) -> None:
    prompt = text(tokens, theirs)
    check(request.getfixturevalue(kind), theirs, [asked(prompt, seed=tokens)])


def test_a_caption_and_its_filling_matter(plain: Pipeline) -> None:
    """Else the comparisons would show nothing of them."""
    texts = ("a cat", "a dog", "a cat, blurry", "two cats and a dog, left of the tree")
    latents = [found(plain, [asked(one)]) for one in texts]
    for k, one in enumerate(latents):
        assert all(np.linalg.norm(one - other) > 5e-3 * np.linalg.norm(one) for other in latents[:k])


def test_a_caption_that_is_too_long_is_cut_where_theirs_is(plain: Pipeline, theirs: Theirs) -> None:
    long = asked("a photo of a cat on a white sofa, " * 80)
    check(plain, theirs, [long])
    assert plain.generate(long).metadata["dropped_tokens"]["prompt"] > 0


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_batch_of_different_captions_by_a_mask(
    masked: Pipeline, theirs: Theirs, guidance: float, height: int, width: int
) -> None:
    """diffusers masks too: its batch has captions of all four lengths, and ours as many as fit together."""
    size = {"height": height, "width": width, "guidance_scale": guidance, "negative_prompt": "a dog, blurry"}
    requests = [asked(text(tokens, theirs), seed=tokens, **size) for tokens in sorted(WORDS)]
    check(masked, theirs, requests)


def test_a_batch_of_different_captions_without_a_mask(plain: Pipeline, theirs: Theirs) -> None:
    """They are painted by length; what comes back is in the order asked for. By then the latents are out of order."""
    requests = [asked(text(tokens, theirs), seed=tokens) for tokens in (250, 3, 500, 40)] + [asked("b", images=2)]
    pictures = np.concatenate([result.arrays for result in plain.generate_many(requests)])
    wanted = theirs.pictures(requests)
    assert pictures.shape == wanted.shape
    assert np.abs(pictures.astype(int) - wanted).max() <= 1
    assert wanted.std() > 5


def test_guidance_with_a_negative_prompt_of_another_length(plain: Pipeline, masked: Pipeline, theirs: Theirs) -> None:
    request = asked(text(40, theirs), negative_prompt="", guidance_scale=4.0)
    check(masked, theirs, [request])
    with pytest.raises(RequestInvalid, match=r"one padded length.*export the model with `--masked`"):
        plain.generate(request)


@pytest.mark.parametrize(("height", "width"), [(72, 128), (128, 1080), (48, 128)])
def test_a_size_that_is_no_multiple_of_16_or_too_large_is_refused(plain: Pipeline, height: int, width: int) -> None:
    with pytest.raises(RequestInvalid, match="64 to 256 in multiples of 16"):
        plain.generate(asked(height=height, width=width))


@pytest.mark.parametrize(("height", "width"), [(64, 256), (144, 256), (256, 144), (64, 64)])
def test_other_forms(plain: Pipeline, theirs: Theirs, height: int, width: int) -> None:
    """The narrowest, 16:9 both ways, and the smallest."""
    check(plain, theirs, [asked(height=height, width=width, steps=2)])


@pytest.mark.parametrize("strength", [0.3, 0.8])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_from_an_image(plain: Pipeline, theirs: Theirs, strength: float, height: int, width: int) -> None:
    """The encoder's latents less the VAE's shift, noised as flows are."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    request = Request(
        prompt="a cat", image=picture, strength=strength, num_inference_steps=8, height=height, width=width, seed=5,
        guidance_scale=0.0,
    )  # fmt: skip
    last: list[np.ndarray] = []
    plain.generate(request, lambda step: last.append(step.latents()))
    wanted = theirs.latents_from_image(request)
    assert np.linalg.norm(last[-1] - wanted) / np.linalg.norm(wanted) <= TOLERANCE


@pytest.mark.parametrize("kind", ["zimage_bundle", "zimage_masked"])
def test_the_pytorch_backend_paints_the_same(request: pytest.FixtureRequest, kind: str, theirs: Theirs) -> None:
    folder = request.getfixturevalue(kind)
    with Pipeline.load(folder, "pytorch", precision="fp32", device="cpu", threads=1) as opened:
        check(opened, theirs, [asked(guidance_scale=4.0)])


@pytest.mark.parametrize("steps", [8])
def test_fp16_graphs_lose_what_fp16_loses(zimage_bundle: Path, theirs: Theirs, steps: int) -> None:
    """ONNX Runtime computes them in fp32, from weights in fp16."""
    with Pipeline.load(zimage_bundle, "onnxruntime", precision="fp16", threads=1) as opened:
        requests = [asked(steps=steps)]
        wanted = theirs.latents(requests)
        assert np.linalg.norm(found(opened, requests) - wanted) / np.linalg.norm(wanted) <= 3e-3
