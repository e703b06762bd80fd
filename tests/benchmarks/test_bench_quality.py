from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.bench.compare import verdict
from benchmarks.bench.quality import EQUAL_DB, likeness

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(60, 200, (2, 32, 32, 3), np.uint8)


def test_equal_pictures():
    pytest.importorskip("flip_evaluator")
    found = likeness(PICTURES, PICTURES)
    assert found["pictures"] == 2
    assert found["psnr_db"] == {"median": EQUAL_DB, "worst": EQUAL_DB}
    assert found["ssim"]["worst"] == pytest.approx(1)
    assert found["flip"]["worst"] == 0


def test_the_worst_is_the_worst_by_each_measure():
    pytest.importorskip("flip_evaluator")
    other = PICTURES.copy()
    other[1] += 20
    found = likeness(other, PICTURES)
    assert found["psnr_db"]["worst"] == pytest.approx(20 * np.log10(255 / 20))
    assert found["psnr_db"]["median"] == pytest.approx((EQUAL_DB + found["psnr_db"]["worst"]) / 2)
    assert found["ssim"]["worst"] < 1
    assert found["flip"]["worst"] > 0.02
    assert found["flip"]["median"] == pytest.approx(found["flip"]["worst"] / 2)


def test_psnr_alone_where_the_libraries_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    assert likeness(PICTURES, PICTURES).keys() == {"pictures", "psnr_db"}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ((1.0, 0.95, 1.05), (1.04, 1.0, 1.1), "alike"),
        ((1.0, 0.99, 1.005), (1.02, 1.015, 1.03), "alike"),
        ((1.0, 0.95, 1.05), (1.3, 1.2, 1.4), "slower"),
        ((1.0, 0.95, 1.05), (0.5, 0.45, 0.55), "faster"),
    ],
)
def test_what_two_spreads_say(first, second, told):
    one, other = ({"median": m, "p5": low, "p95": high} for m, low, high in (first, second))
    assert verdict(one, other) == told
