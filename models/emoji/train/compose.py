"""Compositing: scenes as tensors, and their pictures, made on the training device.

Owns the drawing: sprites laid on backgrounds within the ranges of world.py. Knows nothing of networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from world import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    OBJECT_WORDS,
    PAIR_OFFSET,
    SCALES,
    WANDER,
    Scene,
    held_out_pairs,
)

SIZE_CODES = ("normal", "small", "large")
COLOUR_JITTER = 3 / 255


@dataclass(slots=True)
class Scenes:
    """N scenes: indices into world's tables (second is -1 for one object), geometry and colour.

    stacked: the second object is below the first, else right of it. where: (N, 2, 3) centre x, centre y
    and scale of both objects, as fractions of the frame. colour: (N, 3) in 0..1.
    """

    first: Tensor
    second: Tensor
    background: Tensor
    size: Tensor
    stacked: Tensor
    where: Tensor
    colour: Tensor

    def __len__(self) -> int:
        return self.first.shape[0]

    def part(self, index: Tensor | slice) -> Scenes:
        return Scenes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Scenes:
        return Scenes(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def seen_mask(device: torch.device) -> Tensor:
    """(objects, backgrounds) bool: False where the pair is held out."""
    mask = torch.ones(len(OBJECT_WORDS), len(BACKGROUND_WORDS), dtype=torch.bool)
    for word, background in held_out_pairs():
        mask[OBJECT_WORDS.index(word), BACKGROUND_WORDS.index(background)] = False
    return mask.to(device)


def sample_scenes(count: int, generator: torch.Generator, pairs: float = 0.35) -> Scenes:
    """`count` random scenes of seen pairs; a share `pairs` of them has two different objects."""
    device = generator.device
    mask = seen_mask(device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    first = torch.randint(len(OBJECT_WORDS), (count,), generator=generator, device=device)
    shift = torch.randint(1, len(OBJECT_WORDS), (count,), generator=generator, device=device)
    second = (first + shift) % len(OBJECT_WORDS)
    allowed = mask[first] & mask[second]
    two = (uniform(count) < pairs) & allowed.any(1)
    allowed = torch.where(two[:, None], allowed, mask[first])
    background = torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
    size = torch.multinomial(torch.tensor([0.6, 0.2, 0.2], device=device).expand(count, 3), 1, generator=generator)
    size = torch.where(two, torch.zeros_like(size[:, 0]), size[:, 0])
    stacked = two & (uniform(count) < 0.4)
    palette = torch.tensor([BACKGROUNDS[name] for name in BACKGROUND_WORDS], device=device) / 255
    colour = (palette[background] + (2 * uniform(count, 3) - 1) * COLOUR_JITTER).clamp(0, 1)
    where = _placed(uniform(count, 2, 3), two, stacked, size)
    return Scenes(first, torch.where(two, second, -1), background, size, stacked, where, colour)


def _placed(chance: Tensor, two: Tensor, stacked: Tensor, size: Tensor) -> Tensor:
    device = chance.device
    kinds = [*SIZE_CODES, "pair"]
    kind = torch.where(two, len(SIZE_CODES), size)
    low, high = (torch.tensor([SCALES[name][end] for name in kinds], device=device)[kind] for end in (0, 1))
    wander = torch.tensor([WANDER[name] for name in kinds], device=device)[kind]
    centre = 0.5 + (2 * chance[..., :2] - 1) * wander[:, None, None]
    side = torch.tensor([-PAIR_OFFSET, PAIR_OFFSET], device=device) * two[:, None]
    centre[..., 0] += side * ~stacked[:, None]
    centre[..., 1] += side * stacked[:, None]
    scale = low[:, None] + chance[..., 2] * (high - low)[:, None]
    return torch.cat([centre, scale[..., None]], dim=-1)


def described(scenes: Scenes, flip: list[bool]) -> list[Scene]:
    """The same scenes in words; where `flip`, a pair is told from its second object's side."""
    columns = (scenes.first, scenes.second, scenes.background, scenes.size, scenes.stacked)
    told = []
    for (first, second, background, size, stacked), swap in zip(
        zip(*(column.tolist() for column in columns), strict=True), flip, strict=True
    ):
        ground = BACKGROUND_WORDS[background]
        if second < 0:
            told.append(Scene(OBJECT_WORDS[first], ground, SIZE_CODES[size]))
            continue
        relation = ("below" if swap else "above") if stacked else ("right" if swap else "left")
        a, b = (second, first) if swap else (first, second)
        told.append(Scene(OBJECT_WORDS[a], ground, "normal", relation, OBJECT_WORDS[b]))
    return told


class Compositor:
    """Draws scenes from sprites that lie on the device at four resolutions."""

    def __init__(self, sprites: np.ndarray, device: torch.device) -> None:
        straight = torch.from_numpy(sprites).to(device).permute(0, 3, 1, 2).float() / 255
        level = torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], dim=1)
        self.levels = [level]
        for _ in range(3):
            level = F.avg_pool2d(level, 2)
            self.levels.append(level)

    def draw(self, scenes: Scenes, side_px: int) -> tuple[Tensor, Tensor]:
        """(N, 3, side, side) pictures in -1..1 and (N, 1, side, side) coverage in 0..1, float32."""
        picture = scenes.colour[:, :, None, None].expand(-1, -1, side_px, side_px).clone()
        cover = torch.zeros_like(picture[:, :1])
        for slot, objects in enumerate((scenes.first, scenes.second)):
            rows = (objects >= 0).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            layer = self._layer(objects[rows], scenes.where[rows, slot], side_px)
            picture[rows] = layer[:, :3] + (1 - layer[:, 3:]) * picture[rows]
            cover[rows] = layer[:, 3:] + (1 - layer[:, 3:]) * cover[rows]
        return picture.mul(2).sub(1), cover

    def _layer(self, objects: Tensor, where: Tensor, side_px: int) -> Tensor:
        """Premultiplied (N, 4, side, side): each object sampled from the level next above its size."""
        centre = (torch.arange(side_px, device=where.device) + 0.5) / side_px
        across = (centre[None, :] - where[:, 0:1]) / where[:, 2:3] * 2
        down = (centre[None, :] - where[:, 1:2]) / where[:, 2:3] * 2
        grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)
        full_px = self.levels[0].shape[-1]
        level = (full_px / (where[:, 2] * side_px)).log2().floor().clamp(0, len(self.levels) - 1).long()
        layer = torch.zeros(len(objects), 4, side_px, side_px, device=where.device)
        for index, sprites in enumerate(self.levels):
            rows = (level == index).nonzero()[:, 0]
            if len(rows):
                layer[rows] = F.grid_sample(sprites[objects[rows]], grid[rows], align_corners=False)
        return layer
