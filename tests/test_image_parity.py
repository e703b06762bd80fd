"""Pictures from an image, with and without a mask, beside diffusers' own pipelines with the same arrays in.

Of the tiny model on ONNX Runtime, fp32, by its latents at the end. diffusers draws with our noise: the encoder's, then
the first, then what its scheduler's steps ask for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.noise import draws, encoder_noise
from runtime.pipeline import Pipeline
from runtime.request import Request

torch = pytest.importorskip("torch")
SIDE, SEED, IMAGE_INDEX = 128, 11, 0
SHAPE = (4, SIDE // 8, SIDE // 8)
TOLERANCE = 1e-4
"""Relative, of the latents at the end: fp32 sums in another order, over some steps."""
STRENGTHS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
SCHEDULERS = ("euler", "ddim", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "heun", "pndm", "unipc")
STEPS = 10
PROMPT, NEGATIVE, GUIDANCE = "a cat", "blurry", 4.0
MODULES = ("pipeline_stable_diffusion_img2img", "pipeline_stable_diffusion_inpaint")


def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[20:90, 33:101] = 255
    return Image.fromarray(grey)


@pytest.fixture(scope="module")
def ours(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, "onnxruntime", precision="fp32", threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def theirs(tiny_source: Path) -> dict[str, Any]:
    """diffusers' pipelines over the same components."""
    import diffusers

    base = diffusers.StableDiffusionPipeline.from_pretrained(tiny_source, dtype=torch.float32)
    kinds = {"image": diffusers.StableDiffusionImg2ImgPipeline, "mask": diffusers.StableDiffusionInpaintPipeline}
    found = {name: kind(**base.components, requires_safety_checker=False) for name, kind in kinds.items()}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


@contextlib.contextmanager
def our_noise(scheduler: Any) -> Iterator[None]:
    """Within the block diffusers draws ours, wherever it draws."""
    encoder = encoder_noise(SEED, IMAGE_INDEX, SHAPE)
    bank = iter(draws(SEED, IMAGE_INDEX, 128, SHAPE))
    vae = "diffusers.models.autoencoders.vae"
    names = [f"diffusers.pipelines.stable_diffusion.{name}" for name in MODULES]
    modules = [importlib.import_module(name) for name in (vae, *names, type(scheduler).__module__)]

    def drawn(module: Any) -> Any:
        """The pipeline's draw is the first of the bank; nothing before it takes one."""
        take = (lambda: encoder) if module.__name__ == vae else (lambda: next(bank))
        return lambda *_, **__: torch.from_numpy(take()[None].copy())

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", drawn(module))
        yield


def expected(theirs: dict[str, Any], source: Path, request: Request) -> np.ndarray:
    """The latents that diffusers ends with."""
    from export.solver import make_scheduler

    config = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    pipeline = theirs["image" if request.mask is None else "mask"]
    pipeline.scheduler = make_scheduler(request.scheduler, config)
    inputs = {"image": request.image} | ({} if request.mask is None else {"mask_image": request.mask})
    sizes = {} if request.mask is None else {"height": SIDE, "width": SIDE}
    with our_noise(pipeline.scheduler):
        return pipeline(
            prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, strength=request.strength,
            num_inference_steps=request.num_inference_steps, output_type="latent", **inputs, **sizes,
        ).images.numpy()  # fmt: skip


def asked(scheduler: str, strength: float, *, masked: bool, steps: int = STEPS) -> Request:
    return Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, height=SIDE, width=SIDE, seed=SEED,
        num_inference_steps=steps, scheduler=scheduler, strength=strength, image=picture(),
        mask=mask() if masked else None,
    )  # fmt: skip


def found(pipeline: Pipeline, request: Request) -> np.ndarray:
    """The latents that we end with."""
    last: list[np.ndarray] = []
    pipeline.generate(request, lambda step: last.append(step.latents()))
    return last[-1]


def cases() -> list[object]:
    """Every strength with every scheduler; CI takes one strength of each, another from one to the next."""
    made = []
    for masked in (False, True):
        for k, scheduler in enumerate(SCHEDULERS):
            for strength in STRENGTHS:
                fast = strength in (STRENGTHS[2 + (k + 3 * masked) % 6], 1.0 if k % 2 == masked else None)
                name = f"{scheduler}-{strength}-{'mask' if masked else 'image'}"
                made.append(
                    pytest.param(scheduler, strength, masked, marks=[] if fast else [pytest.mark.slow], id=name)
                )
    return made


@pytest.mark.parametrize(("scheduler", "strength", "masked"), cases())
def test_latents_are_those_of_diffusers_own_pipeline(
    ours: Pipeline, theirs: dict[str, Any], tiny_source: Path, scheduler: str, strength: float, masked: bool
) -> None:
    request = asked(scheduler, strength, masked=masked)
    wanted, latents = expected(theirs, tiny_source, request), found(ours, request)
    assert latents.shape == wanted.shape
    assert np.linalg.norm(latents - wanted) <= TOLERANCE * np.linalg.norm(wanted)


MIXED = {
    "text": {"num_inference_steps": 3, "scheduler": "euler"},
    "image": {"num_inference_steps": 7, "scheduler": "euler_ancestral", "image": True, "strength": 0.5},
    "mask": {"num_inference_steps": 5, "scheduler": "ddim", "image": True, "mask": True, "strength": 0.7},
    "all of a mask": {"num_inference_steps": 2, "scheduler": "euler", "image": True, "mask": True},
    "unguided": {"num_inference_steps": 6, "scheduler": "ddim", "image": True, "guidance_scale": 1.0},
}


def test_mixed_batches_are_their_serial_runs(ours: Pipeline) -> None:
    requests = []
    for seed, options in enumerate(MIXED.values()):
        given = {"image": picture(), "mask": mask()}
        fields = {name: given[name] if value is True else value for name, value in options.items()}
        requests.append(Request(prompt=PROMPT, height=SIDE, width=SIDE, seed=seed, **{"guidance_scale": 3.0, **fields}))
    alone = [ours.generate(request).arrays for request in requests]
    for order in (requests, requests[::-1], requests[1:3], requests[:2]):
        for request, result in zip(order, ours.generate_many(order), strict=True):
            difference = result.arrays.astype(int) - alone[requests.index(request)]
            assert np.abs(difference).max() <= 1
    assert len({arrays.tobytes() for arrays in alone}) == len(requests)
