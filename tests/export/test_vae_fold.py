"""A folded VAE is the same function, bit for bit in fp32, and fp16 holds what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from engine.errors import SourceError
from export.graph import HalfConvolutions
from export.vae_fold import STREAM, fold, make_fp16_safe

GENERATOR = torch.Generator().manual_seed(1)
LATENTS = torch.randn(1, 4, 8, 8, generator=GENERATOR)
PIXELS = torch.rand(1, 3, 64, 64, generator=GENERATOR) * 2 - 1
OVERFLOWING = 2e5
"""Times a stream of about 9: 2e6, 30 times what fp16 holds, of which 2⁻⁷ is half of what a run may hold."""


@pytest.fixture(scope="module")
def plain() -> AutoencoderKL:
    return make()


def make(**options: object) -> AutoencoderKL:
    """A random VAE with shortcuts, two layers to a block and attention, as SDXL's is built."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64), layers_per_block=2, latent_channels=4, norm_num_groups=32, **options,
    ).eval()  # fmt: skip


def inflated(vae: AutoencoderKL, factor: float) -> AutoencoderKL:
    """A copy whose stream is about factor times as large: what adds to it, by its names in diffusers' checkpoints."""
    vae = copy.deepcopy(vae)
    adding = ("conv_in", "conv2", "to_out.0", "upsamplers.0.conv", "downsamplers.0.conv", "conv_shortcut")
    linear = adding[3:]
    with torch.no_grad():
        for name, value in vae.named_parameters():
            owner = name.rpartition(".")[0]
            if owner.endswith(adding) and not (owner.endswith(linear) and name.endswith("weight")):
                value.mul_(factor)
    return vae


def folded(vae: AutoencoderKL, *exponents: int) -> AutoencoderKL:
    vae = copy.deepcopy(vae)
    fold(vae, *exponents)
    return vae


def run(vae: AutoencoderKL, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The decoder's pixels and the encoder's mean, in float64."""
    vae = copy.deepcopy(vae).to(dtype)
    with torch.inference_mode(), HalfConvolutions():
        pixels = vae.decode(LATENTS.to(dtype), return_dict=False)[0]
        mean = vae.encode(PIXELS.to(dtype), return_dict=False)[0].mean
    return pixels.double(), mean.double()


def misses(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("factor", [1.0, OVERFLOWING])
def test_a_folded_vae_is_the_same_function(plain: AutoencoderKL, factor: float) -> None:
    """Powers of two leave every rounding where it was, so nothing is granted in fp32 either."""
    vae = inflated(plain, factor)
    assert max(misses(run(folded(vae), torch.float64), run(vae, torch.float64))) <= 1e-12
    for actual, expected in zip(run(folded(vae), torch.float32), run(vae, torch.float32), strict=True):
        assert torch.equal(actual, expected)


def test_fp16_overflows_without_and_not_with_it(plain: AutoencoderKL) -> None:
    """6e-3: fp16 rounds by 5e-4 some thirty times over; the VAE whose stream fits loses 4.2e-3 by itself."""
    vae = inflated(plain, OVERFLOWING)
    exact = run(vae, torch.float64)
    assert not any(torch.isfinite(one).all() for one in run(vae, torch.float16))
    assert max(misses(run(folded(vae), torch.float16), exact)) < 6e-3
    own = misses(run(plain, torch.float16), run(plain, torch.float64))
    assert max(own) < 6e-3


def test_an_everyday_stream_loses_nothing(plain: AutoencoderKL) -> None:
    """A quarter more than what fp16 loses unfolded: the roundings of so few values fall elsewhere, and are no more."""
    for factor in (1.0, 1e3):
        vae = inflated(plain, factor)
        exact = run(vae, torch.float64)
        for here, before in zip(
            misses(run(folded(vae), torch.float16), exact), misses(run(vae, torch.float16), exact), strict=True
        ):
            assert here < 1.25 * before


def test_any_exponents_do(plain: AutoencoderKL) -> None:
    expected = run(plain, torch.float32)
    for stream, branch in product((0, 3, 9), (0, 5)):
        assert all(map(torch.equal, run(folded(plain, stream, branch), torch.float32), expected))


def test_only_a_vae_that_says_so_is_folded() -> None:
    for upcast in (True, False):
        vae = make(force_upcast=upcast)
        before = copy.deepcopy(vae.state_dict())
        make_fp16_safe(vae)
        changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) == upcast
        assert vae.decoder.conv_norm_out.eps == 1e-6 * (4.0**-STREAM if upcast else 1)
        assert not any("to_q" in name or "conv_out" in name or "quant_conv" in name for name in changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda vae: setattr(vae.decoder.mid_block.attentions[0], "group_norm", None),
        lambda vae: vae.decoder.mid_block.attentions.append(torch.nn.Identity()),
        lambda vae: setattr(vae.encoder.mid_block, "more", torch.nn.Identity()),
    ],
)
def test_what_cannot_be_followed_is_refused(plain: AutoencoderKL, damage: Callable[[AutoencoderKL], object]) -> None:
    vae = copy.deepcopy(plain)
    damage(vae)
    with pytest.raises(SourceError, match=r"vae: got a block of .*force_upcast"):
        fold(vae)
