"""The same requests on ONNX Runtime and on PyTorch, fp32, same noise; and mixed batches against serial runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pairs import psnr as psnr_db
from runtime.pipeline import Pipeline
from runtime.request import Request

pytest.importorskip("torch")

SCHEDULERS = ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
PROMPTS = ("a cat on red", "a pizza on white", "a small car on blue")
MIN_PSNR_DB = 50.0
"""Asked for; uint8 rounding alone costs at most a grey level on few pixels, which is above 60 dB."""


@pytest.fixture(scope="module")
def onnxruntime(emoji_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(emoji_bundle, "onnxruntime", threads=2) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def pytorch(emoji_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(emoji_bundle, "pytorch", device="cpu", precision="fp32", threads=1) as pipeline:
        yield pipeline


def requests(scheduler: str, steps: int, guidance: float, count: int) -> list[Request]:
    """The scheduler under test first, then others beside it: each with its own scheduler, guidance and seed."""
    at = SCHEDULERS.index(scheduler)
    return [
        Request(
            prompt=PROMPTS[k], negative_prompt="blurry" if k == 1 else "", height=128, width=128, seed=10 * at + k,
            scheduler=SCHEDULERS[(at + k) % 4], num_inference_steps=max(1, steps - k),
            guidance_scale=guidance if k == 0 else (4.0, 1.0)[k % 2],
        )
        for k in range(count)
    ]  # fmt: skip


def cases() -> list[object]:
    """4 schedulers × {1, 4, 20} steps × guided or not × 1 to 3 in a batch; 20 steps are slow but for pairs of one."""
    found = []
    for scheduler in SCHEDULERS:
        for steps in (1, 4, 20):
            for guidance in (1.0, 3.0):
                for count in (1, 2, 3):
                    slow = steps == 20 and (scheduler != "dpmpp_2m" or count != 2)
                    marks = [pytest.mark.slow] if slow else []
                    name = f"{scheduler}-{steps}-{'guided' if guidance > 1 else 'unguided'}-{count}"
                    found.append(pytest.param(scheduler, steps, guidance, count, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("scheduler", "steps", "guidance", "count"), cases())
def test_backends_agree_and_batches_equal_serial_runs(
    onnxruntime: Pipeline, pytorch: Pipeline, scheduler: str, steps: int, guidance: float, count: int
) -> None:
    batch = requests(scheduler, steps, guidance, count)
    mixed = [result.arrays for result in onnxruntime.generate_many(batch)]
    reference = [result.arrays for result in pytorch.generate_many(batch)]
    for one, expected in zip(mixed, reference, strict=True):
        assert psnr_db(one, expected) >= MIN_PSNR_DB
    for request, one in zip(batch, mixed, strict=True):
        alone = onnxruntime.generate(request).arrays
        assert np.abs(alone.astype(int) - one.astype(int)).max() <= 1


def test_sizes_that_are_odd_in_latents_agree(onnxruntime: Pipeline, pytorch: Pipeline) -> None:
    request = Request(prompt=PROMPTS[0], height=136, width=200, num_inference_steps=2, guidance_scale=3.0)
    assert psnr_db(onnxruntime.generate(request).arrays, pytorch.generate(request).arrays) >= MIN_PSNR_DB


def test_given_noise_gives_the_seeds_picture(onnxruntime: Pipeline) -> None:
    from runtime.noise import draws

    common = {
        "prompt": PROMPTS[0],
        "height": 128,
        "width": 128,
        "num_inference_steps": 3,
        "scheduler": "euler_ancestral",
    }
    bank = draws(7, 0, 4, (4, 16, 16))
    seeded = onnxruntime.generate(Request(seed=7, **common))
    used = onnxruntime.generate(Request(seed=7, **common, latents=bank[None, 0]))
    given = onnxruntime.generate(Request(seed=8, **common, latents=bank[None, 0], noise=bank[None, 1:3]))
    assert np.array_equal(seeded.arrays, used.arrays)
    assert np.array_equal(seeded.arrays, given.arrays)


def test_is_the_picture_of_diffusers_own_pipeline(onnxruntime: Pipeline, root: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(root / "models" / "emoji", dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32)
    ours = Request(
        prompt=PROMPTS[0], negative_prompt="blurry", height=128, width=128, num_inference_steps=4, guidance_scale=3.0,
        num_images=2, latents=latents,
    )  # fmt: skip
    expected = theirs(
        prompt=[ours.prompt] * 2, negative_prompt=[ours.negative_prompt] * 2, height=128, width=128,
        num_inference_steps=4, guidance_scale=3.0, latents=torch.from_numpy(latents), output_type="np",
    ).images  # fmt: skip
    assert psnr_db(onnxruntime.generate(ours).arrays, np.round(expected * 255)) >= MIN_PSNR_DB
