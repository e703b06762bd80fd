"""A VAE's attention in quarters is diffusers' own, and a graph of it holds no scores of all queries."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from diffusers.models.attention_processor import Attention

from engine.binding import Precision
from engine.bundle import load_bundle
from engine.shapes import tensor_types
from export.graph import HalfConvolutions
from export.split_attention import PARTS, SplitAttention, split_attention
from tests.tiny_zimage import vae


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16)])
def test_it_is_diffusers(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain, split = vae().to(dtype), vae().to(dtype)
    split.load_state_dict(plain.state_dict())
    split_attention(split)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode(), HalfConvolutions():
        latents = [one.encode(pixels).latent_dist.mean for one in (plain, split)]
        images = [one.decode(latents[0]).sample for one in (plain, split)]
    for first, second in (latents, images):
        error = (first - second).float().norm() / first.float().norm()
        assert error <= (1e-5 if dtype == torch.float32 else 5e-3), error


def test_both_halves_attend_so() -> None:
    made = vae()
    split_attention(made)
    found = [module for module in made.modules() if isinstance(module, Attention)]
    assert len(found) == 2
    assert all(isinstance(module.processor, SplitAttention) for module in found)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_zimages_graphs_hold_a_quarter_of_the_scores(zimage_bundle: Path, precision: Precision) -> None:
    """At 2048² px: 65536 places."""
    bundle = load_bundle(zimage_bundle)
    graph = next(graph for graph in bundle.graphs(precision) if graph.name == "decoder")
    model = onnx.load(zimage_bundle / graph.file)
    types = tensor_types(model, {"latents": (1, 16, 256, 256)})
    shapes = [types[node.output[0]][1] for node in model.graph.node if node.op_type == "Softmax"]
    assert shapes == [(1, 65536 // PARTS, 65536)] * PARTS
