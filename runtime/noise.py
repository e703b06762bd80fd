"""The noise of a batch: Philox on the host, so that every backend and batch position gets the same."""

from __future__ import annotations

import numpy as np

from engine.binding import Float32Array


def draws(seed: int, image: int, count: int, shape: tuple[int, ...]) -> Float32Array:
    """(count, *shape) standard normal float32, a function of (seed, image) alone; draw 0 is the initial noise."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, image], np.uint64)))
    return generator.standard_normal((count, *shape), np.float32)


def encoder_noise(seed: int, image: int, shape: tuple[int, ...]) -> Float32Array:
    """(*shape) standard normal float32 for the encoder's draw, a function of (seed, image) alone.

    The counter's highest word sets it apart from what `draws` takes, however many those are.
    """
    bits = np.random.Philox(key=np.array([seed, image], np.uint64), counter=[0, 0, 0, 1])
    return np.random.Generator(bits).standard_normal(shape, np.float32)
