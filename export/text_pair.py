"""SDXL's two CLIP text encoders as one graph: the states of both side by side, and the pooled prompt of the second.

Knows neither prompts nor tokenizers beyond the ids of bos, eos and padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.reshape import reshape
from export.text_graph import chosen, emphasized

PENULTIMATE = -2
"""Of hidden_states, the layer whose output is taken, without the final norm."""


class PairConditioning(nn.Module):
    """input_ids, token_weights (rows, tokens), clip_skip (rows,) → encoder_hidden_states (rows, tokens, D₁ + D₂), and
    text_embeds (rows, P), the projected state of the second encoder at its first eos.

    clip_skip: k takes the output of k layers before the last but one; beyond max_clip_skip it counts as 0. Of a prompt
    of several chunks the first one is pooled. ids: bos_id, eos_id and pad_id as input_ids have them; pad_id: what the
    second encoder is padded with. zero_empty: a prompt without tokens becomes zeros, as diffusers has it where no
    negative prompt is given.
    """

    later: Tensor
    upto: Tensor

    def __init__(
        self, encoders: Sequence[Any], chunk: int, max_clip_skip: int, ids: Mapping[str, int], *, pad_id: int,
        zero_empty: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.second = encoders
        self.chunk, self.max_clip_skip, self.zero_empty = chunk, max_clip_skip, zero_empty
        self.eos_id, self.own_pad, self.pad_id = ids["eos_id"], ids["pad_id"], pad_id
        begin = 1 if self.own_pad == self.eos_id else 0  # padded with eos: the first of them is the eos itself
        self.register_buffer("later", torch.ones(chunk, chunk).triu(-begin))
        self.register_buffer("upto", torch.ones(chunk, chunk).tril())

    def forward(self, input_ids: Tensor, token_weights: Tensor, clip_skip: Tensor) -> tuple[Tensor, Tensor]:
        ids = reshape(input_ids, (-1, self.chunk))
        weights = reshape(token_weights, (-1, self.chunk, 1))
        skip = reshape(clip_skip[:, None].expand_as(input_ids), (-1, self.chunk, 1))
        own = ids if self.pad_id == self.own_pad else self._repadded(ids)
        first, second = (
            encoder(input_ids=x, output_hidden_states=True)
            for encoder, x in ((self.first, ids), (self.second, own))
        )  # fmt: skip
        picked = (chosen(one.hidden_states, PENULTIMATE, skip, self.max_clip_skip) for one in (first, second))
        states = [emphasized(one, weights) for one in picked]
        width = sum(state.shape[-1] for state in states)
        hidden = torch.cat(states, -1).reshape(*input_ids.shape, width)
        pooled = self._pooled(second.last_hidden_state, ids).reshape(*input_ids.shape[:1], -1, self._pooled_width)
        return self._zeroed(hidden, input_ids), self._zeroed(pooled[:, 0], input_ids)

    @property
    def _pooled_width(self) -> int:
        return int(self.second.config.projection_dim)

    def _repadded(self, ids: Tensor) -> Tensor:
        """The ids with the second encoder's padding: a place is padding where nothing but it follows.

        Counted by a sum of products, not a product of matrices: TensorRT-RTX has none of fp32 for Turing.
        """
        other = (ids != self.own_pad).float()
        return torch.where((other[:, None] * self.later).sum(-1) == 0, self.pad_id, ids)

    def _pooled(self, last: Tensor, ids: Tensor) -> Tensor:
        """(chunks, P): projected at the first eos. last: after the final norm."""
        ended = ((ids == self.eos_id).float()[:, None] * self.upto).sum(-1) > 0
        place = (1 - ended.float()).sum(-1).clamp(max=self.chunk - 1).long()
        index = place[:, None, None].expand(-1, 1, last.shape[-1])
        projected: Tensor = self.second.text_projection(torch.gather(last, 1, index)[:, 0])
        return projected

    def _zeroed(self, x: Tensor, input_ids: Tensor) -> Tensor:
        if not self.zero_empty:
            return x
        empty = reshape(input_ids[:, 1] == self.eos_id, (-1, *[1] * (x.ndim - 1)))
        return torch.where(empty, torch.zeros_like(x), x)
