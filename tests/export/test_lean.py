"""The forms that are swapped in before tracing: each computes what diffusers' own module computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from export.lean import ChannelNorm, LeanAttention, LeanGEGLU, LeanGroupNorm, is_plain, lean_form, make_lean
from export.phases import PhaseConv, PhaseUpsample, interleave

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}  # sums of some hundred float32 products in another order
SIZES = [((5, 7), None), ((5, 7), (10, 14)), ((5, 7), (9, 13)), ((5, 7), (10, 13)), ((2, 2), (3, 3))]


@pytest.fixture(autouse=True)
def seeded() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def lean(module: nn.Module) -> nn.Module:
    root = nn.Sequential(module)
    make_lean(root)
    return root[0]


@pytest.mark.parametrize("cross", [None, 24])
def test_attention(cross: int | None) -> None:
    attention = Attention(query_dim=32, cross_attention_dim=cross, heads=4, dim_head=8).eval()
    x, context = torch.randn(3, 11, 32), None if cross is None else torch.randn(3, 5, cross)
    expected = attention(x, encoder_hidden_states=context)
    torch.testing.assert_close(lean(attention)(x, encoder_hidden_states=context), expected, **TOLERANCE)
    assert isinstance(attention.processor, LeanAttention)
    torch.testing.assert_close(
        lean(attention)(x, encoder_hidden_states=context), expected, **TOLERANCE
    )  # once is enough


def test_attention_of_a_vae() -> None:
    attention = Attention(
        query_dim=32, heads=1, dim_head=32, norm_num_groups=8, residual_connection=True, bias=True, upcast_softmax=True
    ).eval()
    x = torch.randn(2, 32, 4, 6)
    expected = attention(x)
    torch.testing.assert_close(lean(attention)(x), expected, **TOLERANCE)


def test_attention_with_more_to_it_stays() -> None:
    attention = Attention(query_dim=32, heads=4, dim_head=8, qk_norm="layer_norm")
    assert not is_plain(attention)
    assert not isinstance(lean(attention).processor, LeanAttention)


def test_geglu() -> None:
    module, x = GEGLU(16, 24), torch.randn(2, 5, 16)
    swapped = lean(module)
    assert isinstance(swapped, LeanGEGLU)
    torch.testing.assert_close(swapped(x), module(x), **TOLERANCE)


def test_pointwise_projections_become_linear() -> None:
    module = Transformer2DModel(2, 16, in_channels=32, norm_num_groups=8, cross_attention_dim=24).eval()
    x, context = torch.randn(2, 32, 3, 5), torch.randn(2, 7, 24)
    expected = module(x, context).sample
    assert isinstance(lean(module).proj_in, nn.Linear)
    torch.testing.assert_close(module(x, context).sample, expected, **TOLERANCE)


@pytest.mark.parametrize(("groups", "form"), [(8, ChannelNorm), (4, LeanGroupNorm)])
def test_group_norm(groups: int, form: type[nn.Module]) -> None:
    norm = nn.GroupNorm(groups, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    swapped = lean(norm)
    assert isinstance(swapped, form)
    for x in (torch.randn(2, 8, 3, 5), torch.randn(2, 8, 15)):
        torch.testing.assert_close(swapped(x), norm(x), **TOLERANCE)


@pytest.mark.parametrize(("size", "output_size"), SIZES)
def test_upsampling_by_phases(size: tuple[int, int], output_size: tuple[int, int] | None) -> None:
    module, x = Upsample2D(8, use_conv=True, out_channels=12), torch.randn(2, 8, *size)
    swapped = lean(module)
    assert isinstance(swapped, PhaseUpsample)
    torch.testing.assert_close(swapped(x, output_size), module(x, output_size), **TOLERANCE)


def test_upsampling_of_another_kind_stays() -> None:
    assert lean_form(Upsample2D(8, use_conv=False)) is None
    assert lean_form(Upsample2D(8, use_conv_transpose=True)) is None


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (7, 3)])
def test_convolution_to_few_channels(size: tuple[int, int]) -> None:
    conv, x = nn.Conv2d(16, 3, 3, padding=1), torch.randn(2, 16, *size)
    swapped = lean(conv)
    assert isinstance(swapped, PhaseConv)
    torch.testing.assert_close(swapped(x), conv(x), **TOLERANCE)
    assert lean_form(nn.Conv2d(16, 5, 3, padding=1)) is None


def test_interleave() -> None:
    whole = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    phases = [whole[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)]
    assert torch.equal(interleave(phases), whole)


class Like(nn.Module):
    """Upsampling to the size of another tensor, as a UNet's skip connection asks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.module(x, skip.shape[2:])
        return result


@pytest.mark.filterwarnings("ignore")  # the tracer warns of itself and of every shape that Python reads
@pytest.mark.parametrize("size", [(10, 14), (9, 13), (9, 14), (32, 31)])
def test_the_exported_phases_follow_the_size(size: tuple[int, int], tmp_path: Path) -> None:
    module, path = Upsample2D(8, use_conv=True), tmp_path / "phases.onnx"
    axes = {"x": {0: "b", 2: "h", 3: "w"}, "skip": {0: "b", 2: "H", 3: "W"}}
    torch.onnx.export(
        Like(lean(module)), (torch.zeros(2, 8, 3, 4), torch.zeros(2, 8, 5, 7)), str(path), dynamo=False,
        opset_version=17, input_names=["x", "skip"], dynamic_axes=axes,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x, skip = torch.randn(3, 8, (size[0] + 1) // 2, (size[1] + 1) // 2), torch.zeros(3, 8, *size)
    (actual,) = session.run(None, {"x": x.numpy(), "skip": skip.numpy()})
    np.testing.assert_allclose(actual, module(x, size).numpy(), **TOLERANCE)
