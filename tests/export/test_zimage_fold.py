"""Z-Image's folds: the same function bit for bit in fp32, and in fp16 what overflowed without them does not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline
from torch import Tensor, nn

from engine.bundle import load_bundle
from export.bundle import export_bundle
from export.graph import HalfConvolutions
from export.qwen import QwenConditioning
from export.unet import Decoder
from export.vae_fold import make_fp16_safe
from export.zimage import ZImageDenoiser
from export.zimage_fold import BRANCH, STREAM, fold_text, fold_transformer
from tests.conftest import CACHE, FLOW
from tests.export.test_vae_fold import inflated as inflated_vae
from tests.tiny_zimage import text_encoder, transformer, vae

INFLATED = 1e6
FP16_LIMIT = 5e-3
"""Relative: torch's own .half() of the folded module, where activations reach 1e6."""
Made = Callable[[Any], Tensor]


@pytest.fixture(scope="module")
def plain() -> Any:
    torch.manual_seed(3)
    return transformer()


@contextmanager
def largest(layers: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """The largest magnitude of what each layer makes, of runs within the block."""
    found = dict.fromkeys(layers, 0.0)

    def keep(name: str) -> Callable[..., None]:
        def seen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[name] = max(found[name], output.abs().max().item())

        return seen

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    yield found
    for handle in handles:
        handle.remove()


def branches(model: Any) -> dict[str, nn.Module]:
    """The layers at the ends of every branch."""
    ends = ("to_v", "to_out.0", "w3", "w2")
    return {name: layer for name, layer in model.named_modules() if name.endswith(ends)}


def inputs(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    sample, states = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 16, 10, 6), (2, 32, 64)))
    weights = (torch.arange(32) < torch.tensor([[5], [30]])).float()
    return sample, torch.tensor([900.0, 333.0]), states * scale, weights


def answer(model: Any, dtype: torch.dtype = torch.float32, *, fold: bool = False) -> Tensor:
    """The transformer's, computed in a type by torch itself; in float64."""
    model = copy.deepcopy(model)
    if fold:
        fold_transformer(model)
    with torch.inference_mode():
        return ZImageDenoiser(model.to(dtype))(*inputs(dtype, 2.0**-STREAM if fold else 1.0)).double()


def inflated(model: Any) -> Any:
    """A copy whose branches reach INFLATED in every layer of their ends, found by what they reach by themselves."""
    model = copy.deepcopy(model)
    for ends in (("to_v", "w3"), ("to_out.0", "w2")):  # the outer ones when the inner ones have been scaled
        layers = {name: layer for name, layer in branches(model).items() if name.endswith(ends)}
        with largest(layers) as found:
            answer_in_place(model)
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.mul_(INFLATED / found[name])
    return model


def answer_in_place(model: Any) -> None:
    with torch.inference_mode():
        ZImageDenoiser(model)(*inputs(torch.float32))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_fold_is_exact_in_fp32(plain: Any) -> None:
    assert torch.equal(answer(plain, fold=True), answer(plain))
    large = inflated(plain)
    assert torch.equal(answer(large, fold=True), answer(large))


def test_fp16_is_finite_with_the_fold_alone(plain: Any) -> None:
    """In the runs compared every branch's layer reaches 1e6; fp16 ends at 65504."""
    large = inflated(plain)
    with largest(branches(large)) as found:
        answer_in_place(large)
    assert all(0.5 * INFLATED < value < 2 * INFLATED for value in found.values()), found
    expected = answer(large)
    assert expected.isfinite().all()
    assert not answer(large, torch.float16).isfinite().all()
    half = answer(large, torch.float16, fold=True)
    assert half.isfinite().all()
    assert error(half, expected) <= FP16_LIMIT


def test_the_fold_costs_fp16_nothing(plain: Any) -> None:
    """Where nothing overflows, the error is fp16's own; and bf16's is its own, with or without."""
    expected = answer(plain)
    for dtype, limit in ((torch.float16, FP16_LIMIT), (torch.bfloat16, 8 * FP16_LIMIT)):
        before, after = error(answer(plain, dtype), expected), error(answer(plain, dtype, fold=True), expected)
        assert after <= min(limit, 1.5 * before)


def states(model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    ids = torch.randint(0, 400, (2, 32), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        return QwenConditioning(copy.deepcopy(model).to(dtype), 512)(ids)


def test_the_text_encoders_fold_is_exact() -> None:
    """The whole loop of tests/test_zimage.py shows that the transformer is told of it."""
    torch.manual_seed(5)
    text = text_encoder()
    before = states(text)
    fold_text(text)
    assert torch.equal(states(text), before * 2.0**-STREAM)


def test_fp16_holds_a_text_encoders_stream_of_1e6() -> None:
    """A language model has single features of great size; the others are compared apart from it."""
    torch.manual_seed(5)
    text, feature = text_encoder(), 7
    with torch.no_grad():
        text.layers[0].mlp.up_proj.weight.mul_(1e3)
        row = text.layers[0].mlp.down_proj.weight[feature]
        row.mul_(1e2)
        row.mul_(INFLATED / float(states(text)[..., feature].abs().max()))
    expected = states(text).double()
    assert 0.5 * INFLATED < expected.abs().max() < 2 * INFLATED
    assert not states(text, torch.float16).isfinite().all()
    fold_text(text)
    half = states(text, torch.float16).double() * 2.0**STREAM
    others = [k for k in range(half.shape[-1]) if k != feature]
    for columns in ([feature], others):
        assert error(half[..., columns], expected[..., columns]) <= FP16_LIMIT


def test_the_vae_is_fp16_safe_without_quantisation_and_with_a_shift() -> None:
    torch.manual_seed(7)
    large = inflated_vae(vae(), 1e5)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(8))

    def pixels(model: AutoencoderKL, dtype: torch.dtype) -> np.ndarray:
        with torch.inference_mode(), HalfConvolutions():
            return Decoder(copy.deepcopy(model).to(dtype), dtype)(latents).numpy().astype(int)

    expected = pixels(large, torch.float32)
    assert expected.std() > 5
    assert np.abs(pixels(large, torch.float16) - expected).max() > 20
    make_fp16_safe(large)
    assert np.array_equal(pixels(large, torch.float32), expected)
    assert np.abs(pixels(large, torch.float16) - expected).max() <= 2


@pytest.mark.slow
def test_a_model_whose_activations_reach_1e6_is_exported_and_its_figures_are_told(
    zimage_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = ZImagePipeline.from_pretrained(zimage_source, dtype=torch.float32)
    pipeline.register_modules(transformer=inflated(pipeline.transformer))
    pipeline.save_pretrained(tmp_path / "source")
    with caplog.at_level(logging.WARNING, "zturbo.export"):
        export_bundle(
            tmp_path / "source", tmp_path / "out", precisions=("fp16",), schedulers=FLOW, cache=CACHE / "tables"
        )
    largest_told = load_bundle(tmp_path / "out").reference.largest["denoiser"]
    assert 0.3 * INFLATED * 2.0**-BRANCH < largest_told < 65504
    assert load_bundle(tmp_path / "out").reference.loop.fp16_error["latents"] <= FP16_LIMIT
