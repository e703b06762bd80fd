"""A CLIP text encoder as one graph: chunks encoded apart, layers skipped row by row, and the weights of emphasis.

Knows neither prompts nor tokenizers. The equation of the weights is that of AUTOMATIC1111's web UI, with one mean for
each chunk of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.reshape import reshape

STEADY = 0.02
"""Of a chunk's mean magnitude: a mean below it says nothing of the scale, and dividing by it would multiply rounding.
models/emoji, whose final norm has almost no bias, is at 0.001 to 0.006 and off by 3e-5 there without this bound (0.001
was too low). Of CLIP-L's own weights, none of which were at hand, the figure is unknown."""


class Conditioning(nn.Module):
    """input_ids, token_weights (rows, tokens), clip_skip (rows,) → hidden states (rows, tokens, D).

    tokens: a multiple of chunk, the encoder's own length. clip_skip: 0 takes the last layer's output, k that of k
    layers before, each through the final norm; beyond max_clip_skip it counts as 0.
    """

    def __init__(self, encoder: Any, chunk: int, max_clip_skip: int) -> None:
        super().__init__()
        self.encoder, self.chunk, self.max_clip_skip = encoder, chunk, max_clip_skip

    def forward(self, input_ids: Tensor, token_weights: Tensor, clip_skip: Tensor) -> Tensor:
        ids = reshape(input_ids, (-1, self.chunk))
        states = self.encoder(input_ids=ids, output_hidden_states=True).hidden_states
        skip = reshape(clip_skip[:, None].expand_as(input_ids), (-1, self.chunk, 1))
        hidden = chosen(states, -1, skip, self.max_clip_skip)
        text = getattr(self.encoder, "text_model", self.encoder)  # transformers 5.0 has the layers one deeper
        normed = text.final_layer_norm(hidden)
        weighted = emphasized(normed, reshape(token_weights, (-1, self.chunk, 1)))
        return weighted.reshape(*input_ids.shape, self.encoder.config.hidden_size)


def chosen(states: Sequence[Tensor], layer: int, skip: Tensor, max_clip_skip: int) -> Tensor:
    """The output of a layer, or of as many layers before it as skip (N, tokens, 1) says for a place."""
    hidden = states[layer]
    for k in range(1, max_clip_skip + 1):
        hidden = torch.where(skip == k, states[layer - k], hidden)  # chosen, not summed: 0·inf would spread
    return hidden


def emphasized(hidden: Tensor, weights: Tensor) -> Tensor:
    """The states (N, tokens, D) times weights (N, tokens, 1), then scaled so that each chunk's mean is what it was.

    In fp32, returned in hidden's type; where all weights of a chunk are 1 it comes back bit by bit. Where the
    mean is next to nothing, before or after, the product is left as it is.
    """
    plain = hidden.float()
    product = plain * weights
    before, after = plain.mean((1, 2), keepdim=True), product.mean((1, 2), keepdim=True)
    least = STEADY * plain.abs().mean((1, 2), keepdim=True)
    emphasis = (weights - 1).abs().sum((1, 2), keepdim=True) > 0
    scales = emphasis & (before.abs() > least) & (after.abs() > least)
    ratio = torch.where(scales, before / torch.where(scales, after, 1.0), 1.0)
    return (product * ratio).to(hidden.dtype)
