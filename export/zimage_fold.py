"""Z-Image's weights times powers of two, so that fp16 holds everything between them: exact, and free at run time.

Every branch of its transformer ends in an RMSNorm, which takes any scale away again, and so does the first layer that
reads the text encoder's states. Knows the modules of diffusers and transformers; not what becomes of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from export.lora_layers import slot_of

BRANCH = 5
"""What a branch's inner layer makes (values, gated features) is kept at 2⁻⁵, and what the outer one makes at 2⁻¹⁰: 2e6
fits in fp16, and weights as small as 0.002 are still among its normal numbers."""
STREAM = 5
"""The text encoder's stream is kept at 2⁻⁵: a language model has single features of tens of thousands in it."""
INNER = 3
"""Of that, what the inner layers of its branches have."""


@torch.no_grad()
def fold_transformer(transformer: Any) -> None:
    """Scale both layers of every branch by 2^-BRANCH, and the eps of the norm behind by the square of both, in place.

    rms(s·x, s²·eps) = rms(x, eps), so in fp32 the outputs stay the same, bit for bit, for a text encoder's states that
    `fold_text` has scaled. Layers that take LoRAs with each call scale what these add too.
    """
    for blocks in (transformer.noise_refiner, transformer.context_refiner, transformer.layers):
        for block in blocks:
            for layer in (
                block.attention.to_v,
                block.attention.to_out[0],
                block.feed_forward.w3,
                block.feed_forward.w2,
            ):
                _scale(layer, BRANCH)
            for norm in (block.attention_norm2, block.ffn_norm2):
                norm.eps = math.ldexp(norm.eps, -4 * BRANCH)
    reader = transformer.cap_embedder[0]
    reader.eps = math.ldexp(reader.eps, -2 * STREAM)


@torch.no_grad()
def fold_text(model: Any) -> None:
    """Scale all that a Qwen3's layers add up by 2^-STREAM, and the eps of the norms that read it, in place.

    The states that come out are 2^-STREAM of what they were.
    """
    model.embed_tokens.weight.mul_(2.0**-STREAM)
    for layer in model.layers:
        inner, outer = (layer.self_attn.v_proj, layer.mlp.up_proj), (layer.self_attn.o_proj, layer.mlp.down_proj)
        for linear in inner:
            _scale(linear, INNER)
        for linear in outer:
            linear.weight.mul_(2.0 ** (INNER - STREAM))
            if linear.bias is not None:
                linear.bias.mul_(2.0**-STREAM)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.variance_epsilon = math.ldexp(norm.variance_epsilon, -2 * STREAM)


def _scale(layer: Any, exponent: int) -> None:
    layer.weight.mul_(2.0**-exponent)
    if layer.bias is not None:
        layer.bias.mul_(2.0**-exponent)
    if (slot := slot_of(layer, scale=2.0**-exponent)) is not None:
        layer.slot = slot
