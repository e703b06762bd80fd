"""A VAE's attention a quarter of the queries at a time, so that its scores need a quarter of the memory; the same sums.

Its one head of 512 is in no fused kernel, so all scores lie in memory: at 2048² px 65536², 8.6 GB in fp16, and as much
for their softmax. TensorRT-RTX 1.7 asks for 16.4 GiB of scratch for the decoder then, and for 5.0 GiB with quarters,
which is what convolutions need; at 1024² px for 1.3 GiB either way. Knows diffusers' Attention.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from export.lean import is_plain
from export.reshape import reshape

PARTS = 4


def split_attention(vae: Any) -> None:
    """Let both halves of an AutoencoderKL attend so, in place; its latents must be even along both sides."""
    for half in (vae.encoder, vae.decoder):
        for module in half.modules():
            if isinstance(module, Attention) and is_plain(module) and module.group_norm is not None:
                module.set_processor(SplitAttention())


class SplitAttention:
    """softmax(s·q·kᵀ)·v of one head over a picture's places, PARTS times for its share of the queries."""

    stays = True
    """make_lean's one product of all queries would hold four times as much."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 - diffusers passes it; only a spatial norm would use it
    ) -> Tensor:
        """hidden_states: (B, C, H, W), H and W even. Returns its shape."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        x = attn.group_norm(reshape(hidden_states, (0, 0, -1))).transpose(1, 2)
        key, value = attn.to_k(x).transpose(1, 2), attn.to_v(x)
        queries = reshape(attn.to_q(x) * attn.scale, (0, PARTS, -1, attn.inner_dim)).unbind(1)
        mixed = torch.cat([torch.softmax(query @ key, -1) @ value for query in queries], 1)
        result: Tensor = attn.to_out[0](mixed).transpose(1, 2).reshape_as(hidden_states) + hidden_states
        return result
