"""Rotary positions in real numbers: tables of angles, and the turning of queries and keys by them.

TensorRT has no complex numbers; diffusers turns pairs of channels as complex ones. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from export.reshape import reshape

COSINE, SINE = 0, 1
"""Their places in a turn: float32, (…, 2, pairs of channels)."""


def turn_tables(widths: Sequence[int], lengths: Sequence[int], theta: float) -> list[Tensor]:
    """For each axis of positions the turns (positions, 2, width / 2), float32, by position · theta^(−2k / width).

    Equation (15) of RoFormer (arXiv 2104.09864); angles in float64 and then rounded, as diffusers does.
    """
    tables = []
    for width, length in zip(widths, lengths, strict=True):
        frequencies = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width))
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, frequencies).float()
        tables.append(torch.stack((torch.cos(angles), torch.sin(angles)), 1))
    return tables


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Channels 2k and 2k + 1 turned by angle k, in float32; returned in x's type.

    x: (rows, tokens, heads, D). turn: (rows or 1, tokens, 2, D / 2).
    """
    even, odd = reshape(x.float(), (0, 0, 0, -1, 2)).unbind(-1)
    return reshape(torch.stack(_turned(even, odd, turn), -1), (0, 0, 0, -1)).to(x.dtype)


def turned_halves(x: Tensor, turn: Tensor) -> Tensor:
    """As `turned`, of channels k and D / 2 + k: how language models lay out their pairs."""
    first, second = x.float().chunk(2, -1)
    return torch.cat(_turned(first, second, turn), -1).to(x.dtype)


def _turned(a: Tensor, b: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = turn[:, :, None, COSINE], turn[:, :, None, SINE]
    return a * cosine - b * sine, a * sine + b * cosine
