from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.pairs import Summary, psnr
from benchmarks.report import as_json


def test_summary() -> None:
    assert Summary.of([3.0, 1.0, 2.0]) == Summary(2.0, pytest.approx(1.1), pytest.approx(2.9))


def test_psnr() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert math.isinf(psnr(black, black))
    assert psnr(black, grey) == pytest.approx(20 * math.log10(255))


def test_json_is_short_and_whole() -> None:
    assert as_json({"a": 1 / 3, "b": [2, "×"], "c": None}, indent=None) == '{"a": 0.33333, "b": [2, "×"], "c": null}'
