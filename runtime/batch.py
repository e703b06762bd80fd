"""Requests → samples → batches, and the arrays that the host feeds to a batch's graphs.

A guided sample owns two denoiser rows (prompt, negative prompt), an unguided one owns one. Knows no backend.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.binding import Array, Float32Array
from engine.wiring import IMAGE, LORA
from runtime.loras import Loras, Packed
from runtime.noise import draws, encoder_noise
from runtime.tables import Table, Tables
from runtime.text import Prompt, Tokenizer

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One picture to paint, with every default filled in.

    clip_skip: as diffusers counts it. guidance_scale: as the solver takes it. seed, image: what its noise depends on.
    initial: (C, H/8, W/8), noise: (draws, C, H/8, W/8), or None for the seed's. pixels: (H, W, 3) uint8 of the image to
    begin from, or None. mask: (1, H/8, W/8), or None to paint everywhere. original, target: (height, width), None for
    the picture's own; crop: (top, left); in pixels, what SDXL's denoiser is told. loras: of both rows.
    """

    prompt: str
    negative_prompt: str
    emphasis: bool
    clip_skip: int
    table: Table
    guidance_scale: float
    guided: bool
    seed: int
    image: int
    initial: Float32Array | None
    noise: Float32Array | None
    pixels: NDArray[np.uint8] | None = None
    mask: Float32Array | None = None
    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None
    loras: tuple[Packed, ...] = ()

    @property
    def rows(self) -> int:
        """Denoiser rows it takes."""
        return 2 if self.guided else 1

    @property
    def prompts(self) -> list[Prompt]:
        """One per denoiser row: its prompt, then its negative prompt where it is guided."""
        texts = (self.prompt, self.negative_prompt) if self.guided else (self.prompt,)
        return [(text, self.emphasis) for text in texts]


GREY = 128
"""The pixels of a sample without an image beside others that have one: encoded, and not used."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples of one size that are painted together. latent_shape: (C, H/8, W/8). height, width: pixels. tokens: of
    each row's prompt, padding included.
    """

    samples: tuple[Sample, ...]
    latent_shape: tuple[int, int, int]
    height: int
    width: int
    tokens: int

    @property
    def evaluations(self) -> int:
        """The loop's length: that of the sample which needs most."""
        return max(sample.table.evaluations for sample in self.samples)

    @property
    def dims(self) -> dict[str, int]:
        """The value of each symbolic axis. The noise bank grows in powers of two, so that step counts share buffers."""
        return {
            "samples": len(self.samples), "rows": sum(sample.rows for sample in self.samples),
            "height": self.height, "width": self.width, "tokens": self.tokens,
            "draws": _power_of_two(max(sample.table.draws for sample in self.samples)),
        }  # fmt: skip

    @property
    def has_images(self) -> bool:
        """Whether a sample begins from an image."""
        return any(sample.pixels is not None for sample in self.samples)

    def host_inputs(self, tables: Tables, tokenizer: Tokenizer, loras: Loras | None = None) -> dict[str, Array]:
        """Every array the host feeds, by wire name (engine.wiring.host_wires). loras: where the bundle takes some."""
        lora = None if loras is None else loras.rows([one.loras for one in self.samples for _ in range(one.rows)])
        first = np.cumsum([0, *(sample.rows for sample in self.samples)])[:-1].astype(np.int32)
        rows = np.array([sample.rows for sample in self.samples], np.int32)
        return {
            **tokenizer.rows([prompt for sample in self.samples for prompt in sample.prompts], self.tokens),
            "time_ids": np.repeat(self._time_ids(), rows, 0),
            "clip_skip": np.repeat(np.array([sample.clip_skip for sample in self.samples], np.int32), rows),
            "table": tables.padded([sample.table for sample in self.samples]),
            "noise": self._noise(),
            "guidance_scale": np.array([sample.guidance_scale for sample in self.samples], np.float32),
            "cond_row": first,
            "uncond_row": first + rows - 1,
            "sample_of_row": np.repeat(np.arange(len(rows), dtype=np.int32), rows),
            "mask": self._masks(),
            **(self._images() if self.has_images else {}),
            **({} if lora is None else {LORA: lora}),
        }

    def _time_ids(self) -> Float32Array:
        """(samples, 6): original height and width, top and left of the crop, target height and width."""
        size = self.height, self.width
        return np.array(
            [[*(one.original or size), *one.crop, *(one.target or size)] for one in self.samples], np.float32
        )

    def _masks(self) -> Float32Array:
        """(samples, 1, H/8, W/8): 1 where a sample is painted."""
        masks = np.ones((len(self.samples), 1, *self.latent_shape[1:]), np.float32)
        for k, sample in enumerate(self.samples):
            if sample.mask is not None:
                masks[k] = sample.mask
        return masks

    def _images(self) -> dict[str, Array]:
        """What the encoder reads: the pixels, and its noise, which is a stream of its own."""
        pixels = np.full((len(self.samples), self.height, self.width, 3), GREY, np.uint8)
        noise = np.zeros((len(self.samples), *self.latent_shape), np.float32)
        for k, sample in enumerate(self.samples):
            if sample.pixels is not None:
                pixels[k] = sample.pixels
                noise[k] = encoder_noise(sample.seed, sample.image, self.latent_shape)
        return {IMAGE: pixels, "image_noise": noise}

    def _noise(self) -> Float32Array:
        """(samples, draws, C, H/8, W/8): draw 0 is the initial noise; draws a sample does not use stay zero."""
        bank = np.zeros((len(self.samples), self.dims["draws"], *self.latent_shape), np.float32)
        for k, sample in enumerate(self.samples):
            count = sample.table.draws
            bank[k, :count] = draws(sample.seed, sample.image, count, self.latent_shape)
            if sample.initial is not None:
                bank[k, 0] = sample.initial
            if sample.noise is not None:
                bank[k, 1:count] = sample.noise[: count - 1]
        return bank


def _power_of_two(count: int) -> int:
    """The smallest power of two that is at least count."""
    return 1 << (count - 1).bit_length()


def split(
    samples: Sequence[Sample], row_counts: Collection[int], most_samples: int | None = None
) -> list[tuple[Sample, ...]]:
    """Consecutive groups of samples, each of a number of rows that is allowed; a sample is never cut in two,
    and their order stays, though another might need fewer groups: pictures come back as they were asked for.
    most_samples: how many a group has at the most; None leaves that to the rows.

    As few groups as can be, and of those divisions the most even one. Where no division is allowed, groups that do not
    exceed the most rows: whoever binds them says what is wrong.
    """
    width = len(samples) if most_samples is None else most_samples
    return _division(samples, row_counts, width) or _division(samples, range(1, max(*row_counts, 2) + 1), width)


def _division(samples: Sequence[Sample], row_counts: Collection[int], width: int) -> list[tuple[Sample, ...]]:
    """The groups, found from the last sample to the first; none where no division is allowed."""
    count, most = len(samples), max(row_counts)
    # Of the samples from each on: how many groups, minus the rows of the least one, minus where the first one ends.
    best: list[tuple[int, int, int] | None] = [None] * count + [(0, -most, -count)]
    for begin in reversed(range(count)):
        rows = 0
        for end in range(begin + 1, min(begin + width, count) + 1):
            rows += samples[end - 1].rows
            after = best[end]
            if rows > most:
                break
            if rows in row_counts and after is not None:
                found = after[0] + 1, max(after[1], -rows), -end
                best[begin] = min(best[begin] or found, found)
    groups, begin = list[tuple[Sample, ...]](), 0
    while begin < count and (found_here := best[begin]) is not None:
        groups.append(tuple(samples[begin : -found_here[2]]))
        begin = -found_here[2]
    return groups
