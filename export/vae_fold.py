"""A VAE's weights times powers of two, so that fp16 holds everything between them: exact, and free at run time.

Stable Diffusion XL's VAE adds up values that fp16 does not hold, in the one stream that every residual branch reads
through a GroupNorm, which takes any scale away again. Knows diffusers' blocks; not what becomes of the module.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from engine.errors import SourceError

STREAM = 7
"""The stream is kept at 2⁻⁷ of itself: 4e6 fits below 3e4, and one of 0.1 still lies in fp16's normal numbers."""
BRANCH = 3
"""What a branch's first convolution makes is kept at 2⁻³; no reader but the branch's own second norm sees it."""


def make_fp16_safe(vae: Any) -> None:
    """Fold an AutoencoderKL whose config says that it overflows in fp16 (force_upcast), in place; leave others alone.

    In fp32 the outputs stay the same, bit for bit but where a value is next to fp32's smallest: so the fp32 run of a
    folded module also tells what fp16 has to hold. Raises SourceError for a block that cannot be followed.
    """
    if vae.config.force_upcast:
        fold(vae)


def fold(vae: Any, stream: int = STREAM, branch: int = BRANCH) -> None:
    """Scale what encoder and decoder carry by 2^-stream, and what their branches hold inside by 2^-branch, in place.

    A sum scaled alike in all its terms is scaled; a GroupNorm of x·s with eps·s² is that of x with eps. So every
    last convolution of a branch and conv_in are scaled whole, and of what is linear in the stream the bias alone.
    """
    for half in (vae.encoder, vae.decoder):
        with torch.no_grad():
            _scale(half.conv_in, stream)
            for block in (*getattr(half, "down_blocks", ()), *getattr(half, "up_blocks", ()), half.mid_block):
                for part in _parts(block):
                    _fold_part(part, stream, branch)
            _scale_eps(half.conv_norm_out, stream)


def _parts(block: nn.Module) -> list[nn.Module]:
    """What the stream runs through in a block, one after the other."""
    lists = [child for child in block.children() if isinstance(child, nn.ModuleList)]
    if len(lists) != len(list(block.children())):
        raise _unknown(block)
    return [part for parts in lists for part in parts]


def _fold_part(part: nn.Module, stream: int, branch: int) -> None:
    if isinstance(part, ResnetBlock2D) and part.time_emb_proj is None:
        _scale_eps(part.norm1, stream)
        _scale(part.conv1, branch)
        _scale_eps(part.norm2, branch)
        _scale(part.conv2, stream)
        _scale_bias(part.conv_shortcut, stream)
    elif isinstance(part, Attention) and part.group_norm is not None and part.spatial_norm is None:
        _scale_eps(part.group_norm, stream)
        _scale(part.to_out[0], stream)
    elif isinstance(part, (Upsample2D, Downsample2D)) and part.norm is None:
        _scale_bias(part.conv, stream)
    else:
        raise _unknown(part)


def _scale(layer: Any, exponent: int) -> None:
    layer.weight.mul_(2.0**-exponent)
    _scale_bias(layer, exponent)


def _scale_bias(layer: Any, exponent: int) -> None:
    """Of a layer that may be missing, or have none."""
    if getattr(layer, "bias", None) is not None:
        layer.bias.mul_(2.0**-exponent)


def _scale_eps(norm: nn.GroupNorm, exponent: int) -> None:
    norm.eps = math.ldexp(norm.eps, -2 * exponent)


def _unknown(part: nn.Module) -> SourceError:
    return SourceError(
        "vae", actual=f"a block of {type(part).__name__}, in a VAE that overflows in fp16 (force_upcast)",
        allowed="residual blocks, attention, upsampling and downsampling, as AutoencoderKL has them",
        remedy="Set force_upcast to false in vae/config.json if it does not overflow.",
    )  # fmt: skip
