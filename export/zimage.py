"""Z-Image's transformer as a graph: the real module's layers, without its lists, masks in Python and complex numbers.

Nothing here has weights of its own. The captions' part depends on the captions alone, so engine/hoist.py takes it out
of the loop. Knows neither the text encoder nor how weights are loaded or scaled.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.lora_layers import LoraWire
from export.reshape import reshape
from export.rope import turn_tables, turned

PATCH = 2
"""Latents along each side of an image's token."""
MULTIPLE = 32
"""Image and caption are each filled up to a multiple of so many tokens, and the filling is attended to."""
NEVER = -1e4
"""Added to the score of what is not attended to: exp(−1e4) is 0 in every type, and fp16 holds it."""
PERIOD = 10_000
"""The longest wave of the time's embedding, in timesteps."""


class Tokens(NamedTuple):
    """A sequence, (rows, tokens, dim), and the turns of its positions, (rows or 1, tokens, 2, pairs)."""

    x: Tensor
    turn: Tensor


class Attention(nn.Module):
    """The real attention's layers: projections, norms of queries and keys, rotary positions, one softmax."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.heads = int(real.heads)
        self.scale = (real.to_q.out_features // self.heads) ** -0.5
        self.to_q, self.to_k, self.to_v, self.to_out = real.to_q, real.to_k, real.to_v, real.to_out[0]
        self.norm_q, self.norm_k = real.norm_q, real.norm_k

    def forward(self, x: Tensor, turn: Tensor, bias: Tensor | None) -> Tensor:
        """x: (rows, tokens, dim). bias: (rows, 1, 1, tokens), added to the scores. Returns x's shape."""
        query, key, value = (reshape(to(x), (0, 0, self.heads, -1)) for to in (self.to_q, self.to_k, self.to_v))
        query, key = turned(self.norm_q(query), turn), turned(self.norm_k(key), turn)
        q, k, v = (one.transpose(1, 2) for one in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        result: Tensor = self.to_out(reshape(mixed.transpose(1, 2), (0, 0, -1)))
        return result


class Block(nn.Module):
    """A transformer block; where the real one is modulated, by an embedding of the time."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.attention = Attention(real.attention)
        self.feed_forward = real.feed_forward
        self.attention_norm1, self.attention_norm2 = real.attention_norm1, real.attention_norm2
        self.ffn_norm1, self.ffn_norm2 = real.ffn_norm1, real.ffn_norm2
        self.modulation = real.adaLN_modulation if real.modulation else None

    def forward(self, x: Tensor, turn: Tensor, bias: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """x: (rows, tokens, dim). time: (rows, 1, D) of a modulated block. Returns x's shape."""
        if self.modulation is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), turn, bias))
            plain: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
            return plain
        scale, gate, mlp_scale, mlp_gate = self.modulation(time).chunk(4, 2)
        mixed = self.attention(self.attention_norm1(x) * (1 + scale), turn, bias)
        x = x + gate.tanh() * self.attention_norm2(mixed)
        mixed = self.feed_forward(self.ffn_norm1(x) * (1 + mlp_scale))
        modulated: Tensor = x + mlp_gate.tanh() * self.ffn_norm2(mixed)
        return modulated


class ZImageDenoiser(nn.Module):
    """sample (rows, C, H/8, W/8), timestep (rows,) float32 as a scheduler counts it, encoder_hidden_states (rows,
    tokens, D), token_weights (rows, tokens) → noise_pred, shaped as sample: the transformer's output, negated.

    token_weights: above 0 where a row has tokens; they come first. tokens: a multiple of MULTIPLE. masked: whether rows
    may have captions of different lengths; else all of them fill `tokens` but for less than MULTIPLE. A last input
    `lora` (rows, rank, size) follows where the layers were made to take one. transformer: diffusers' own.
    """

    axis_0: Tensor
    axis_1: Tensor
    axis_2: Tensor
    frequencies: Tensor

    def __init__(self, transformer: Any, *, masked: bool = False, loras: LoraWire | None = None) -> None:
        super().__init__()
        config = transformer.config
        self.masked, self.loras, self.t_scale = masked, loras, float(config.t_scale)
        self.time_mlp = transformer.t_embedder.mlp
        self.x_embedder = transformer.all_x_embedder[f"{PATCH}-1"]
        final = transformer.all_final_layer[f"{PATCH}-1"]
        self.norm_out, self.scale_out, self.proj_out = final.norm_final, final.adaLN_modulation, final.linear
        self.cap_embedder = transformer.cap_embedder
        self.x_pad_token, self.cap_pad_token = transformer.x_pad_token, transformer.cap_pad_token
        self.noise_refiner, self.context_refiner, self.layers = (
            nn.ModuleList(map(Block, blocks))
            for blocks in (transformer.noise_refiner, transformer.context_refiner, transformer.layers)
        )
        for axis, table in enumerate(turn_tables(config.axes_dims, config.axes_lens, config.rope_theta)):
            self._keep(f"axis_{axis}", table)
        half = transformer.t_embedder.frequency_embedding_size // 2
        self._keep("frequencies", torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32) / half))

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(self.x_pad_token.device))

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, token_weights: Tensor, *lora: Tensor
    ) -> Tensor:
        if self.loras is not None:
            (self.loras.value,) = lora
        real = token_weights > 0
        length = MULTIPLE * torch.ceil(real.float().sum(1, keepdim=True) / MULTIPLE)  # (rows, 1); read where masked
        bias = self._bias(real, length).to(sample.dtype) if self.masked else None
        caption = self._caption(encoder_hidden_states, real, bias)
        time = self._time(timestep, sample.dtype)
        image = self._image(sample, self._frame(encoder_hidden_states, length), time)
        x, turn = torch.cat([image.x, caption.x], 1), _beside(image.turn, caption.turn)
        if bias is not None:
            bias = torch.cat([torch.zeros_like(image.x[:, None, None, :, 0]), bias], -1)
        for block in self.layers:
            x = block(x, turn, bias, time)
        return -self._unpatched(x, sample, time)

    def _time(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """(rows, 1, D): the embedding of 1 − timestep / 1000, which is 0 where all is noise."""
        angles = ((1000 - timestep) / 1000 * self.t_scale)[:, None] * self.frequencies[None]
        embedded: Tensor = self.time_mlp(torch.cat([torch.cos(angles), torch.sin(angles)], -1).to(dtype))
        return embedded[:, None]

    def _bias(self, real: Tensor, length: Tensor) -> Tensor:
        """(rows, 1, 1, tokens): what is added to scores, so that a caption's own filling counts and no other."""
        place = torch.arange(real.shape[1], device=real.device)[None]
        return torch.where(place < length, 0.0, NEVER)[:, None, None]

    def _caption(self, states: Tensor, real: Tensor, bias: Tensor | None) -> Tokens:
        """The caption's tokens: (rows, tokens, dim), at positions 1, 2 … of the first axis."""
        x = torch.where(real[..., None], self.cap_embedder(states), self.cap_pad_token)
        tokens = states.shape[1]
        first = self.axis_0[1 : tokens + 1]
        others = [axis[:1].expand(tokens, -1, -1) for axis in (self.axis_1, self.axis_2)]
        turn = torch.cat([first, *others], -1)[None]
        for block in self.context_refiner:
            x = block(x, turn, bias)
        return Tokens(x, turn)

    def _frame(self, states: Tensor, length: Tensor) -> Tensor:
        """(rows or 1, 2, pairs): the turn of an image's place on the first axis, behind its caption."""
        if self.masked:
            return self.axis_0[(length[:, 0] + 1).long()]
        tokens = states.shape[1]
        return self.axis_0[tokens + 1 : tokens + 2]

    def _image(self, sample: Tensor, frame: Tensor, time: Tensor) -> Tokens:
        """The image's tokens row by row, filled up to a multiple of MULTIPLE with tokens at position 0."""
        rows, channels, height, width = sample.shape
        down, across = height // PATCH, width // PATCH
        patches = sample.reshape(rows, channels, down, PATCH, across, PATCH).permute(0, 2, 4, 3, 5, 1)
        x = self.x_embedder(patches.reshape(rows, down * across, channels * PATCH * PATCH))
        size = frame.shape[0], down, across, -1, -1
        axes = frame[:, None, None], self.axis_1[None, :down, None], self.axis_2[None, None, :across]
        turn = torch.cat([axis.expand(size) for axis in axes], -1).flatten(1, 2)
        # All filling there can be, of which what is needed is kept: no tensor is ever empty, as one for 1024² px is.
        filled = (down * across + MULTIPLE - 1) // MULTIPLE * MULTIPLE
        origin = torch.cat([axis[:1] for axis in (self.axis_0, self.axis_1, self.axis_2)], -1)[None]
        x = torch.cat([x, self.x_pad_token[None].expand(rows, MULTIPLE - 1, -1)], 1)[:, :filled]
        turn = torch.cat([turn, origin.expand(frame.shape[0], MULTIPLE - 1, -1, -1)], 1)[:, :filled]
        for block in self.noise_refiner:
            x = block(x, turn, None, time)
        return Tokens(x, turn)

    def _unpatched(self, x: Tensor, sample: Tensor, time: Tensor) -> Tensor:
        """The image's tokens as latents again, shaped as sample."""
        rows, channels, height, width = sample.shape
        down, across = height // PATCH, width // PATCH
        own = self.norm_out(x[:, : down * across]) * (1 + self.scale_out(time))
        patches: Tensor = self.proj_out(own).reshape(rows, down, across, PATCH, PATCH, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, height, width)


def _beside(image: Tensor, caption: Tensor) -> Tensor:
    """The turns of both, (rows or 1, tokens, 2, pairs)."""
    return torch.cat([image, caption.expand(image.shape[0], -1, -1, -1)], 1)
