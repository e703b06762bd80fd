"""What measured values and pictures say: medians, spread, likeness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, 20·log10(255 / rms difference); infinite where equal."""
    rms = float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))
    return math.inf if rms == 0 else 20 * math.log10(255 / rms)
