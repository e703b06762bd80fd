"""How far outputs may be from what was recorded, and what a reference without numbers is worth."""

from __future__ import annotations

import numpy as np
import pytest

from engine import compare


@pytest.mark.parametrize(
    ("dtype", "precision", "fp16_error", "allowed"),
    [
        ("float16", "fp16", 0.004, 0.008), ("float16", "bf16", 0.004, 0.064), ("float32", "fp32", 0.004, 1e-4),
        ("float16", "fp16", 0.0, 5e-4), ("uint8", "fp16", 0.0, 1 / 256), ("int32", "bf16", 0.5, 0.0),
    ],
)  # fmt: skip
def test_what_is_allowed(dtype, precision, fp16_error, allowed):
    assert compare.allowed_error(dtype, precision, fp16_error) == pytest.approx(allowed)


def test_what_the_reference_itself_lacks_is_left_out():
    expected = np.array([1.0, np.inf, 2.0])
    assert compare.difference(np.array([1.0, np.nan, 2.0]), expected) == (0.0, 0)
    assert compare.difference(np.array([np.nan, 1.0, 2.0]), expected) == (-1.0, 1)


@pytest.mark.parametrize("expected", [np.array([np.nan, np.inf]), np.zeros(0)])
def test_beside_a_reference_without_a_number_nothing_passes(expected):
    missed = compare.compared("odd", "denoiser", "sample", (np.zeros_like(expected), expected), 0.01)
    assert not missed.passed
    assert "case odd: beside a reference with no finite value, allowed" in compare.miss_text(missed)
