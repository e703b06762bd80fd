"""Tells which object stands on which background, by templates.

The background is the named colour nearest to the border's median. The objects are small sprites
(templates.webp) laid on that background at several scales and slid over the picture: the best match of
differences from the background decides. No network, nothing trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from world import BACKGROUND_WORDS, BACKGROUNDS, OBJECT_WORDS

TEMPLATES = Path(__file__).with_name("templates.webp")
TILE_PX = 64
COLUMNS = 12
FRAME_PX = 64
SCALES = (0.34, 0.38, 0.42, 0.46, 0.51, 0.56, 0.61, 0.66, 0.72, 0.79, 0.86, 0.93)
# An object that covers almost nothing in colour (yellow on yellow) must not win by matching nothing.
QUIET = 0.02

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a picture seems to show; `score` is 1 for a perfect match, `runner_up` the next object."""

    object: str
    background: str
    score: float
    runner_up: str


class Matcher:
    def __init__(self, templates: Path = TEMPLATES, scales: tuple[float, ...] = SCALES) -> None:
        sheet = Image.open(templates).convert("RGBA")
        self.scales = scales
        self.palette = np.array([BACKGROUNDS[name] for name in BACKGROUND_WORDS], dtype=np.float32) / 255
        sprites = [_tile(sheet, index) for index in range(len(OBJECT_WORDS))]
        layers = np.stack([_placed(sprite, scale) for sprite in sprites for scale in scales])
        self.layers = layers.reshape(len(OBJECT_WORDS), len(scales), 4, FRAME_PX, FRAME_PX)
        self.spectra = np.conj(np.fft.rfft2(self.layers)).astype(np.complex64)
        colour, alpha = self.layers[:, :, :3], self.layers[:, :, 3:]
        # |colour − background · alpha|² is a quadratic in the background: its three coefficients, per channel
        self.squares = tuple(part.sum((3, 4)) for part in (colour**2, -2 * colour * alpha, alpha**2))

    def background_of(self, frame: Pixels) -> tuple[str, Pixels]:
        """The named colour nearest to the border's median, and that median; frame (64, 64, 3) in 0..1."""
        border = np.concatenate([frame[:2].reshape(-1, 3), frame[-2:].reshape(-1, 3), frame[:, :2].reshape(-1, 3),
                                 frame[:, -2:].reshape(-1, 3)])  # fmt: skip
        median = np.median(border, axis=0)
        nearest = int(((self.palette - median) ** 2).sum(1).argmin())
        return BACKGROUND_WORDS[nearest], median

    def scores(self, frame: Pixels, background: Pixels) -> NDArray[np.float32]:
        """(objects,) best match over scales and places: 2<d, t> / (|d|² + |t|²), d and t as differences
        from the background. Like a normalized correlation, but a match of the wrong strength costs.
        """
        difference = (frame - background).transpose(2, 0, 1)
        spectrum = np.fft.rfft2(difference).astype(np.complex64)
        # template difference = premultiplied colour − background · alpha: linear, so its spectrum is too
        product = np.einsum("oscyx,cyx->osyx", self.spectra[:, :, :3], spectrum)
        product -= self.spectra[:, :, 3] * np.einsum("c,cyx->yx", background, spectrum)
        product = np.fft.irfft2(product, s=(FRAME_PX, FRAME_PX))
        best = product.reshape(*product.shape[:2], -1).max(-1)
        constant, linear, square = self.squares
        painted = (constant + linear * background + square * background**2).sum(2)
        energy = painted + (difference**2).sum() + QUIET * FRAME_PX
        best_of_scales: NDArray[np.float32] = (2 * best / energy).max(1).astype(np.float32)
        return best_of_scales

    def look(self, picture: Image.Image) -> Verdict:
        frame = framed(picture)
        name, colour = self.background_of(frame)
        scores = self.scores(frame, colour)
        order = np.argsort(-scores)
        return Verdict(OBJECT_WORDS[order[0]], name, float(scores[order[0]]), OBJECT_WORDS[order[1]])

    def look_at_two(self, picture: Image.Image, stacked: bool) -> tuple[str, str]:
        """The objects of both halves (left and right, or top and bottom), each half padded to a square."""
        width, height = picture.size
        halves = [(0, 0, width, height // 2), (0, height // 2, width, height)] if stacked else [
            (0, 0, width // 2, height), (width // 2, 0, width, height)]  # fmt: skip
        _, colour = self.background_of(framed(picture))
        found = []
        for box in halves:
            ground = tuple(round(float(each) * 255) for each in colour)
            canvas = Image.new("RGB", picture.size, (ground[0], ground[1], ground[2]))
            canvas.paste(picture.convert("RGB").crop(box), (box[0], box[1]))
            found.append(OBJECT_WORDS[int(self.scores(framed(canvas), colour).argmax())])
        return found[0], found[1]


def framed(picture: Image.Image) -> Pixels:
    small = picture.convert("RGB").resize((FRAME_PX, FRAME_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _tile(sheet: Image.Image, index: int) -> Image.Image:
    row, column = divmod(index, COLUMNS)
    left, top = column * TILE_PX, row * TILE_PX
    return sheet.crop((left, top, left + TILE_PX, top + TILE_PX))


def _placed(sprite: Image.Image, scale: float) -> Pixels:
    """(4, 64, 64) premultiplied, the sprite at the middle of an empty frame."""
    side = math.floor(scale * FRAME_PX + 0.5)
    small = sprite.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    layer = np.zeros((4, FRAME_PX, FRAME_PX), dtype=np.float32)
    start = (FRAME_PX - side) // 2
    layer[:, start : start + side, start : start + side] = np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255
    return layer
