"""The whole loop of each tiny family on ONNX Runtime, beside diffusers' own pipeline with the same arrays in, fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from engine.bundle import load_bundle
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.family_pipelines import NAMES, Theirs, family_bundle
from tests.tiny_families import FAMILIES

TOLERANCE = 1e-4
"""Relative, of the latents at the end: fp32 sums in another order, over some steps."""
STEPS = 4
EMBEDDED = ("lcm", "sdxl-lcm")
XL = ("sdxl", "sdxl-turbo", "sdxl-lcm")


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


def asked(scheduler: str = "euler", seed: int = 0, images: int = 1, **options: Any) -> Request:
    """A request that brings its own noise."""
    height, width = options.pop("height", 128), options.pop("width", 128)
    rng = np.random.default_rng(seed)
    shape = 4, height // 8, width // 8
    drawn = STEPS - 1 if scheduler in ("euler_ancestral", "lcm") else 0
    noise = rng.standard_normal((images, drawn, *shape)).astype(np.float32)
    return Request(**{
        "prompt": "a cat", "scheduler": scheduler, "num_inference_steps": STEPS, "guidance_scale": 3.0,
        "height": height, "width": width, "num_images": images, "noise": noise,
        "latents": rng.standard_normal((images, *shape)).astype(np.float32), **options,
    })  # fmt: skip


def found(pipeline: Pipeline, request: Request) -> np.ndarray:
    """The latents that we end with."""
    last: list[np.ndarray] = []
    pipeline.generate(request, lambda step: last.append(step.latents()))
    return last[-1]


def check(ours: Pipeline, theirs: Theirs, request: Request) -> None:
    wanted, latents = theirs.latents(request), found(ours, request)
    assert latents.shape == wanted.shape
    error = np.linalg.norm(latents - wanted) / np.linalg.norm(wanted)
    print(f"error {error:.2e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("scheduler", NAMES)
def test_each_scheduler(ours: Pipeline, theirs: Theirs, family: str, scheduler: str) -> None:
    if family == "lcm" and scheduler != "lcm":
        pytest.skip("diffusers' LatentConsistencyModelPipeline takes LCMScheduler alone")
    check(ours, theirs, asked(scheduler, negative_prompt="blurry"))


@pytest.mark.parametrize("guidance", [1.0, 8.5])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_guidance_and_negative_prompts(
    ours: Pipeline, theirs: Theirs, family: str, guidance: float, negative: str
) -> None:
    check(ours, theirs, asked(scheduler_of(family), guidance_scale=guidance, negative_prompt=negative, seed=1))


def test_images_of_one_request_that_are_not_square_and_odd_in_latents(
    ours: Pipeline, theirs: Theirs, family: str
) -> None:
    scheduler = "lcm" if family == "lcm" else "dpmpp_2m"
    check(ours, theirs, asked(scheduler, seed=2, images=3, height=136, width=200))


def test_clip_skip(ours: Pipeline, theirs: Theirs, family: str) -> None:
    """Unguided: diffusers encodes negative prompts without it, ours with it, as the web UIs."""
    check(ours, theirs, asked(scheduler_of(family), clip_skip=1, seed=3, guidance_scale=1.0))


def scheduler_of(family: str) -> str:
    """LatentConsistencyModelPipeline hands its scheduler an argument that no other one takes."""
    return "lcm" if family == "lcm" else "euler"


def test_a_prompt_of_two_chunks_runs(ours: Pipeline) -> None:
    long = found(ours, asked(prompt="a cat " * 60))
    assert np.isfinite(long).all()
    assert np.abs(long - found(ours, asked())).max() > 1e-4


def test_guidance_is_told_where_the_denoiser_reads_it(family: str) -> None:
    assert (load_bundle(family_bundle(family)).guidance == "embedded") == (family in EMBEDDED)


@pytest.mark.parametrize(
    "told", [{"original_size": (512, 384)}, {"crops_coords_top_left": (16, 48)}, {"target_size": (256, 192)}]
)
def test_sizes_that_sdxl_is_told(ours: Pipeline, theirs: Theirs, family: str, told: dict[str, Any]) -> None:
    if family not in XL:
        pytest.skip("reads no sizes")
    check(ours, theirs, asked(seed=4, **told))
