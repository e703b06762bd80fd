"""Interleaved turns of two contenders, and what they say: medians, spread, ratios of pairs, likeness of pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import ContenderProcess
from benchmarks.work import Turn

SETTLE_S = 0.05
"""Between two turns: longer than the threads of the one before spin."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, 5th and 95th percentile."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """The summary of one or more values; percentiles are interpolated."""
        p5, median, p95 = np.percentile(np.array(values, np.float64), (5, 50, 95))
        return cls(float(median), float(p5), float(p95))


def interleaved(
    first: ContenderProcess, second: ContenderProcess, *, warmup: int, pairs: int, on_pair: Callable[[], None]
) -> tuple[list[Turn], list[Turn]]:
    """`pairs` turns of each, taken in turns; who begins changes from pair to pair. Warm-up turns are dropped."""
    turns: tuple[list[Turn], list[Turn]] = ([], [])
    for index in range(warmup + pairs):
        order = ((0, first), (1, second)) if index % 2 == 0 else ((1, second), (0, first))
        for position, process in order:
            time.sleep(SETTLE_S)
            turns[position].append(process.paint())
        on_pair()
    return turns[0][warmup:], turns[1][warmup:]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, 20·log10(255 / rms difference); infinite where equal."""
    rms = float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))
    return math.inf if rms == 0 else 20 * math.log10(255 / rms)
