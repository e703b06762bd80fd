"""LoRAs of each tiny family, fused and as inputs, from a file to final latents; diffusers' own loader reads the same.

By load_lora_weights and set_adapters, through peft. What a LoRA file may hold is in tests/engine/test_lorafile.py, what
precisions, batches and backends make of one in test_loras.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft")

import torch

from export.bundle import export_bundle
from export.families import FusedLoraFile
from export.lora import fuse, read_loras, unet_names
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.conftest import CACHE, exported
from tests.family_pipelines import Theirs, family_source
from tests.lora_files import DIALECTS, Pair, load, random_pairs, text_layers, unet_layers, write
from tests.tiny_families import FAMILIES

TOLERANCE = 1e-4
"""Relative, of the latents at the end: fp32 through three steps of a UNet, in another order of sums."""
STEPS, SIZE = 3, 128
Loras = Sequence[tuple[Path, float]]
XL = tuple(family for family in FAMILIES if family.startswith("sdxl"))
ALPHA = {"kohya": True, "diffusers": False, "peft": False, "kohya_xl": True}
"""The dialects, and whether each layer has an alpha: diffusers takes none beside its own names."""


def dialects(family: str) -> list[str]:
    """kohya names SDXL's layers by the original UNet; both are read."""
    return [dialect for dialect in ALPHA if dialect != "kohya_xl" or family in XL]


CASES = [(family, dialect) for family in FAMILIES for dialect in dialects(family)]


class Subject:
    """A family, its modules, and files of random LoRAs for them."""

    def __init__(self, family: str) -> None:
        self.family, self.theirs = family, Theirs(family)
        names = ("unet", "text_encoder", "text_encoder_2")
        self.modules = {name: part for name in names if (part := getattr(self.theirs.pipeline, name, None)) is not None}

    def pairs(self, seed: int, rank: int, parts: Sequence[str] = ("unet",)) -> list[Pair]:
        """One LoRA of some components."""
        found = []
        for part in parts:
            module = self.modules[part]
            layers = unet_layers(module) if part == "unet" else text_layers(module)
            found += random_pairs(part, module, dict.fromkeys(layers), rank=rank, seed=seed, size=0.2)
        return found

    def file(self, path: Path, dialect: str, *, seed: int = 0, rank: int = 4, texts: bool = False) -> Path:
        """A LoRA file; with those of all text encoders, or of the UNet alone."""
        pairs = self.pairs(seed, rank, tuple(self.modules) if texts else ("unet",))
        return write(path, pairs, DIALECTS[dialect], alpha=ALPHA[dialect])


@pytest.fixture(scope="module")
def subject() -> Callable[[str], Subject]:
    """The subject of a family, made once."""
    return cache(Subject)


def loaded(family: str, loras: Loras) -> Theirs:
    """diffusers' pipeline with its own loader."""
    theirs = Theirs(family)
    for name in ("text_encoder", "text_encoder_2"):
        if (text := getattr(theirs.pipeline, name, None)) is not None:
            text.__dict__.pop("text_model", None)  # its loader looks for the level that there is not
    load(theirs.pipeline, loras)
    return theirs


def asked(family: str, **options: Any) -> Request:
    """A guided request with a negative prompt that brings its own arrays."""
    rng = np.random.default_rng(1)
    name = "lcm" if family == "lcm" else "dpmpp_2m"
    shape = 1, 4, SIZE // 8, SIZE // 8
    draws = STEPS - 1 if name == "lcm" else 0
    return Request(
        prompt="a cat", negative_prompt="blurry", scheduler=name, num_inference_steps=STEPS, guidance_scale=3.0,
        height=SIZE, width=SIZE, latents=rng.standard_normal(shape).astype(np.float32),
        noise=rng.standard_normal((1, draws, *shape[1:])).astype(np.float32), **options,
    )  # fmt: skip


def found(pipeline: Pipeline, request: Request) -> np.ndarray:
    """The latents that we end with."""
    last: list[np.ndarray] = []
    pipeline.generate(request, lambda step: last.append(step.latents()))
    return last[-1]


def check(latents: np.ndarray, wanted: np.ndarray, plain: np.ndarray) -> None:
    """They are diffusers', which are not those of the model alone. plain: without a LoRA."""
    error = np.linalg.norm(latents - wanted) / np.linalg.norm(wanted)
    print(f"error {error:.2e}, changed by {np.linalg.norm(plain - wanted) / np.linalg.norm(wanted):.2e}")
    assert np.linalg.norm(plain - wanted) > 100 * TOLERANCE * np.linalg.norm(wanted)
    assert error <= TOLERANCE


@pytest.fixture(scope="module")
def taking() -> Iterator[Any]:
    """Opens the bundle of a family whose denoiser takes LoRAs of rank 8 in all with each request."""
    opened: dict[str, Pipeline] = {}

    def open_one(family: str) -> Pipeline:
        if family not in opened:
            scheduler = asked(family).scheduler
            folder = exported(family_source(family), f"{family}-loras", (scheduler,), precisions=["fp32"], lora_rank=8)
            opened[family] = Pipeline.load(folder, "onnxruntime", precision="fp32", threads=1)
        return opened[family]

    yield open_one
    for pipeline in opened.values():
        pipeline.close()


def check_inputs(subject: Any, taking: Any, family: str, loras: Loras) -> None:
    pipeline, request = taking(family), asked(family)
    wanted = loaded(family, loras).latents(request)
    plain = found(pipeline, request)
    base = subject(family).theirs.latents(request)
    assert np.linalg.norm(plain - base) <= TOLERANCE * np.linalg.norm(base)
    check(found(pipeline, asked(family, loras=[(str(path), weight) for path, weight in loras])), wanted, plain)


def check_fused(subject: Any, family: str, loras: Loras, out: Path) -> None:
    request = asked(family)
    export_bundle(
        family_source(family), out, precisions=["fp32"], schedulers=[request.scheduler], cache=CACHE / "tables",
        loras=loras,
    )  # fmt: skip
    plain = subject(family).theirs.latents(request)
    with Pipeline.load(out, "onnxruntime", precision="fp32", threads=1) as pipeline:
        check(found(pipeline, request), loaded(family, loras).latents(request), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_weights_of_every_component(subject, tmp_path, family):
    """Of two LoRAs, to the last bits."""
    one = subject(family)
    dialect = "kohya_xl" if family in XL else "peft"
    paths = [
        one.file(tmp_path / f"{k}.safetensors", name, seed=k, rank=4 - k, texts=True)
        for k, name in enumerate((dialect, "kohya"))
    ]
    theirs = loaded(family, [(paths[0], 0.7), (paths[1], -0.4)]).pipeline
    theirs.fuse_lora(adapter_names=["lora0", "lora1"])
    theirs.unload_lora_weights()
    ours, place = Theirs(family).pipeline, unet_names(dict(one.modules["unet"].config))
    files = [FusedLoraFile(paths[0], 0.7), FusedLoraFile(paths[1], -0.4)]
    loras = read_loras(files, tuple(one.modules), place)
    for name in one.modules:
        module = getattr(ours, name)
        module.__dict__.pop("text_model", None)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        fuse(module, name, loras, place)
        expected = dict(getattr(theirs, name).named_parameters())
        for key, value in module.named_parameters():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
        assert any(not torch.equal(before[key], value) for key, value in module.named_parameters())


def test_sdxl_takes_two_with_a_request(subject, taking, tmp_path):
    one = subject("sdxl")
    paths = [one.file(tmp_path / f"{k}.safetensors", name, seed=k, rank=4 - k)
             for k, name in enumerate(("kohya_xl", "peft"))]  # fmt: skip
    check_inputs(subject, taking, "sdxl", [(paths[0], 0.6), (paths[1], -1.2)])


def test_sdxl_with_two_fused(subject, tmp_path):
    one = subject("sdxl")
    paths = [one.file(tmp_path / f"{k}.safetensors", name, seed=k, rank=4 - k, texts=True)
             for k, name in enumerate(("kohya_xl", "diffusers"))]  # fmt: skip
    check_fused(subject, "sdxl", [(paths[0], 0.7), (paths[1], 0.4)], tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.8, -0.5])
@pytest.mark.parametrize(("family", "dialect"), CASES)
def test_each_family_takes_them_with_a_request(subject, taking, tmp_path, family, dialect, weight):
    check_inputs(subject, taking, family, [(subject(family).file(tmp_path / "x.safetensors", dialect), weight)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_takes_two_with_a_request(subject, taking, tmp_path, family):
    one = subject(family)
    paths = [one.file(tmp_path / f"{k}.safetensors", name, seed=k, rank=4 - k)
             for k, name in enumerate(("kohya", "diffusers"))]  # fmt: skip
    check_inputs(subject, taking, family, [(paths[0], 0.6), (paths[1], -1.2)])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dialect"), CASES)
def test_each_family_with_one_fused(subject, tmp_path, family, dialect):
    """Text encoders too."""
    path = subject(family).file(tmp_path / "x.safetensors", dialect, texts=True)
    check_fused(subject, family, [(path, 0.7)], tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_with_two_fused(subject, tmp_path, family):
    one = subject(family)
    paths = [one.file(tmp_path / f"{k}.safetensors", name, seed=k, rank=4 - k, texts=k == 0)
             for k, name in enumerate(("kohya", "peft"))]  # fmt: skip
    check_fused(subject, family, [(paths[0], 0.7), (paths[1], -0.4)], tmp_path / "bundle")
