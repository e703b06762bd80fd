"""A VAE encoder that pads within its convolutions: the same latents, and no Pad in its graph."""

from __future__ import annotations

import copy

import onnx
import pytest

pytest.importorskip("torch")

import torch

from engine.bundle import load_bundle
from export.strided import StridedConv, pad_in_convolutions
from tests.tiny_families import unet, vae

SIZES = [(64, 64), (40, 56)]


@pytest.mark.parametrize("size", SIZES)
def test_the_latents_are_the_same(size):
    """fp32, to the bit: zeros are added in either way before the same convolution."""
    torch.manual_seed(1)
    theirs = vae().eval()
    ours = copy.deepcopy(theirs)
    pad_in_convolutions(ours)
    assert sum(isinstance(part, StridedConv) for part in ours.modules()) == 3
    picture = torch.randn(2, 3, *size)
    with torch.inference_mode():
        found, expected = (one.encode(picture).latent_dist.mean for one in (ours, theirs))
    assert torch.equal(found, expected)


def test_a_unet_stays_as_it_is():
    """Its downsampling pads alike on all sides, which its convolution says by itself."""
    whole = unet()
    pad_in_convolutions(whole)
    assert not any(isinstance(part, StridedConv) for part in whole.modules())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_padding_is_left_in_the_graph(tiny_bundle, precision):
    graph = next(graph for graph in load_bundle(tiny_bundle).graphs(precision) if graph.name == "encoder")
    nodes = onnx.load(tiny_bundle / graph.file, load_external_data=False).graph.node
    assert all(node.op_type != "Pad" for node in nodes)
