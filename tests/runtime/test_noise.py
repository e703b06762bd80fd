"""Noise is a function of (seed, image) alone: the same on every machine, in every batch, for every count of draws."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.noise import draws

SHAPE = (4, 16, 17)
SEEDS = (0, 1, 2**32, 2**63 - 1)
RECORDED = {
    (0, 0): (0.059911035, 0.015559634, -1.1644385),
    (2**63 - 1, 15): (0.80293834, 1.9122126, 0.7446112),
}
"""The first three values of (seed, image). A change here changes every picture that anyone made."""


@pytest.mark.parametrize("seed", SEEDS)
def test_more_draws_begin_with_the_fewer(seed):
    long = draws(seed, 0, 101, SHAPE)
    for count in (1, 2, 7, 100):
        assert np.array_equal(draws(seed, 0, count, SHAPE), long[:count])


def test_seeds_and_images_differ():
    banks = [draws(seed, image, 1, SHAPE) for seed in SEEDS for image in range(16)]
    assert len({bank.tobytes() for bank in banks}) == len(banks)
    together = np.stack([bank.ravel() for bank in banks]).astype(np.float64)
    correlation = np.corrcoef(together) - np.eye(len(banks))
    assert np.abs(correlation).max() < 0.15  # 1088 values: 0.03 each, 2016 pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_standard_normal_float32(seed):
    bank = draws(seed, 3, 20, SHAPE)
    assert bank.dtype == np.float32
    assert bank.shape == (20, *SHAPE)
    assert np.isfinite(bank).all()
    assert abs(bank.mean()) < 0.03  # 21760 values: a standard error of 0.007
    assert abs(bank.std() - 1) < 0.03


@pytest.mark.parametrize(("seed", "image"), RECORDED)
def test_it_stays_the_same_for_ever(seed, image):
    assert draws(seed, image, 1, (3,))[0] == pytest.approx(RECORDED[seed, image], abs=1e-7)


def test_it_takes_nothing_from_numpys_global_state():
    before = draws(5, 0, 1, SHAPE)
    np.random.seed(1)  # noqa: NPY002 - the state that must not matter
    assert np.array_equal(draws(5, 0, 1, SHAPE), before)
