"""Batches of each tiny family on ONNX Runtime: every sample against diffusers' own pipeline, and against itself alone.

The samples of a batch differ in prompt, negative prompt, guidance, scheduler and step count. One request at a time is
in test_families.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.family_pipelines import Theirs, family_bundle
from tests.tiny_families import FAMILIES

TOLERANCE = 1e-4
"""Relative, of the latents at the end: fp32 sums in another order, over some steps."""
SIZES = [(128, 128), (136, 200)]
"""The second is odd in latents, and not square."""
GUIDANCE = {
    "guided": (3.0, 8.5, 2.0), "unguided": (1.0, 0.0, 1.0), "mixed": (8.5, 1.0, 3.0), "mixed-too": (1.0, 4.0, 0.0),
}  # fmt: skip
"""Of the samples in turn; 1 and less take no second row."""
PROMPTS = ("a cat", "a cat on a mat", "two trees")
NEGATIVES = ("blurry", "", "a cat")
STEPS = (4, 2, 3)
SCHEDULERS = ("euler", "ddim", "dpmpp_2m", "euler_ancestral")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(family: str) -> Iterator[Pipeline]:
    with Pipeline.load(family_bundle(family), "onnxruntime", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def theirs(family: str) -> Theirs:
    return Theirs(family)


def asked(family: str, count: int, guidance: Sequence[float], size: tuple[int, int], first: int = 0) -> list[Request]:
    """Requests that bring their own arrays. first: of SCHEDULERS, for the first of them."""
    height, width = size
    rng = np.random.default_rng(count + first)
    found = []
    for k in range(count):
        name = "lcm" if family == "lcm" else SCHEDULERS[(first + k) % len(SCHEDULERS)]
        shape = 1, 4, height // 8, width // 8
        draws = STEPS[k] - 1 if name in ("euler_ancestral", "lcm") else 0
        options: dict[str, Any] = {"scheduler": name, "num_inference_steps": STEPS[k], "guidance_scale": guidance[k]}
        noise = rng.standard_normal((1, draws, *shape[1:])).astype(np.float32)
        latents = rng.standard_normal(shape).astype(np.float32)
        found.append(Request(
            prompt=PROMPTS[k], negative_prompt=NEGATIVES[k], height=height, width=width, latents=latents, noise=noise,
            **options,
        ))  # fmt: skip
    return found


def found(pipeline: Pipeline, requests: Sequence[Request]) -> np.ndarray:
    """The latents at the end of all images, which one batch had: (images, 4, H/8, W/8)."""
    last: list[np.ndarray] = []
    pipeline.generate_many(requests, lambda step: last.append(step.latents()))
    assert len(last) == max(request.num_inference_steps or 0 for request in requests)
    assert len(last[-1]) == sum(request.num_images for request in requests)
    return last[-1]


def check(ours: Pipeline, theirs: Theirs, requests: Sequence[Request]) -> None:
    """Each sample of the batch is what diffusers paints, and what we paint of it alone."""
    together = found(ours, requests)
    for request, latents in zip(requests, together, strict=True):
        for what, wanted in (("diffusers", theirs.latents(request)[0]), ("serial", found(ours, [request])[0])):
            error = np.linalg.norm(latents - wanted) / np.linalg.norm(wanted)
            print(f"{what} {error:.2e}")
            assert error <= TOLERANCE, (what, request.scheduler)
    others = [latents for latents in together[1:] if np.linalg.norm(latents - together[0]) > 0.1]
    assert len(others) == len(requests) - 1  # one sample in another's place would be seen


def test_a_mixed_batch(family: str, ours: Pipeline, theirs: Theirs) -> None:
    check(ours, theirs, asked(family, 3, GUIDANCE["mixed"], SIZES[0]))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["square", "odd"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_of_each_kind(
    family: str, ours: Pipeline, theirs: Theirs, count: int, guidance: str, size: tuple[int, int]
) -> None:
    check(ours, theirs, asked(family, count, GUIDANCE[guidance], size, first=count))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["square", "odd"])
def test_images_of_several_requests_share_a_batch(
    family: str, ours: Pipeline, theirs: Theirs, size: tuple[int, int]
) -> None:
    """Two images of a guided request and one of an unguided one."""
    first, single = asked(family, 2, GUIDANCE["mixed"], size)
    both, noise = (np.concatenate([a, b]) for a, b in ((first.latents, single.latents), (first.noise, first.noise)))
    several = replace(first, num_images=2, latents=both, noise=noise)
    wanted = [*theirs.latents(several), *theirs.latents(single)]
    for latents, expected in zip(found(ours, [several, single]), wanted, strict=True):
        error = np.linalg.norm(latents - expected) / np.linalg.norm(expected)
        print(f"diffusers {error:.2e}")
        assert error <= TOLERANCE
