"""Qwen3 as a text encoder: token ids become the states that its last layer but one leaves.

The last layer and the final norm are not run, for nothing reads them; attention is causal, so the padding behind a text
changes nothing of it. Nothing here has weights of its own. Knows neither templates nor what reads the states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.reshape import reshape
from export.rope import turn_tables, turned_halves

NEVER = -1e4
"""Added to the score of a later token: exp(−1e4) is 0 in every type, and fp16 holds it."""


class Attention(nn.Module):
    """The real attention's layers; several heads of queries share one of keys and values."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = real.q_proj, real.k_proj, real.v_proj, real.o_proj
        self.q_norm, self.k_norm = real.q_norm, real.k_norm
        self.width, self.group, self.scale = int(real.head_dim), int(real.num_key_value_groups), float(real.scaling)

    def forward(self, x: Tensor, turn: Tensor, bias: Tensor) -> Tensor:
        """x: (rows, tokens, D). bias: (tokens, tokens), added to the scores. Returns x's shape."""
        query, key, value = (reshape(to(x), (0, 0, -1, self.width)) for to in (self.q_proj, self.k_proj, self.v_proj))
        query, key = turned_halves(self.q_norm(query), turn), turned_halves(self.k_norm(key), turn)
        q, k, v = query.transpose(1, 2), self._shared(key), self._shared(value)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        result: Tensor = self.o_proj(reshape(mixed.transpose(1, 2), (0, 0, -1)))
        return result

    def _shared(self, x: Tensor) -> Tensor:
        """(rows, tokens, heads, D) of keys or values → (rows, heads of queries, tokens, D)."""
        each = x.transpose(1, 2)[:, :, None].expand(-1, -1, self.group, -1, -1)
        rows, heads, group, tokens, width = each.shape
        return each.reshape(rows, heads * group, tokens, width)


class Layer(nn.Module):
    """A decoder layer over the real one's."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(real.self_attn), real.mlp
        self.input_layernorm, self.post_attention_layernorm = real.input_layernorm, real.post_attention_layernorm

    def forward(self, x: Tensor, turn: Tensor, bias: Tensor) -> Tensor:
        """x: (rows, tokens, D). Returns x's shape."""
        x = x + self.self_attn(self.input_layernorm(x), turn, bias)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class QwenConditioning(nn.Module):
    """input_ids (rows, tokens) → encoder_hidden_states (rows, tokens, D), transformers' `hidden_states[-2]`.

    model: transformers' Qwen3Model. max_tokens: the most there may be.
    """

    turns: Tensor

    def __init__(self, model: Any, max_tokens: int) -> None:
        super().__init__()
        self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleList(Layer(layer) for layer in list(model.layers)[:-1])
        width, theta = int(model.config.head_dim), float(model.config.rope_parameters["rope_theta"])
        (turns,) = turn_tables([width], [max_tokens], theta)
        self.register_buffer("turns", turns.to(model.embed_tokens.weight.device))

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed_tokens(input_ids)
        tokens = input_ids.shape[1]
        place = torch.arange(tokens, device=input_ids.device)
        bias = torch.where(place[None] <= place[:, None], 0.0, NEVER).to(x.dtype)
        turn = self.turns[:tokens][None]
        for layer in self.layers:
            x = layer(x, turn, bias)
        return x
