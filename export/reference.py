"""Seeded inputs and fp32 torch outputs of every graph: what parity is judged by, at export and on other machines.

Does not know what runs the graphs; export/check.py runs them in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.binding import Array, Binding, Dims
from engine.wiring import LORA
from export.families import Model
from export.solver import COLUMNS

Arrays = dict[str, Array]
LORA_SIZE = 0.05
LORA_PERIOD = 4093
"""A prime, so that no line of a matrix is another; its bytes fit the window in which deflate finds what came before."""


def cases(model: Model) -> dict[str, dict[str, int]]:
    """The shapes that are recorded: the default, the smallest with mixed rows, one that is odd in latents, and one with
    prompts of two chunks, or of twice what a templated one is padded to.
    """
    low, side, step = model.limits.min_px, model.defaults.height, model.limits.multiple_px
    tokens = {"tokens": model.least_tokens}
    rows = rows_of_guided(model)
    return {
        "default": {"rows": rows, "samples": 1, "height": side, "width": model.defaults.width, "draws": 1, **tokens},
        "small": {"rows": 3, "samples": 2, "height": low, "width": low, "draws": 4, **tokens},
        "odd": {"rows": 1, "samples": 1, "height": low, "width": low + step, "draws": 2, **tokens},
        "long": {"rows": rows, "samples": 1, "height": low, "width": low, "draws": 1, "tokens": 2 * model.least_tokens},
    }


def rows_of_guided(model: Model) -> int:
    """Denoiser rows of a guided sample: one where the guidance is an embedding."""
    return 2 if model.guidance == "classifier_free" else 1


def loop_dims(model: Model) -> dict[str, int]:
    """The shape of the recorded loop: the default; of a large model the smallest size, for a CPU runs it too."""
    by_case = cases(model)
    size = by_case["small" if model.large else "default"]
    return {**by_case["default"], "height": size["height"], "width": size["width"]}


def seeded_inputs(bindings: Sequence[Binding], dims: Dims, seed: int, model: Model) -> Arrays:
    """Arrays for a graph's inputs: indices that are valid at dims, standard normal elsewhere."""
    rng = np.random.default_rng(seed)
    return {b.name: _values(b, dims, rng, model).astype(b.dtype) for b in bindings}


def token_weights(model: Model, shape: tuple[int, ...], spread: float, rng: np.random.Generator) -> Array:
    """(rows, tokens): weights around 1 by spread; of prompts in a template 1 where a row has tokens and 0 where it is
    padded, which without a mask is less than what prompts are padded to.
    """
    if model.multiple is None:
        return rng.uniform(1 - spread, 1 + spread, shape).astype(np.float32)
    rows, tokens = shape
    padding = rng.integers(0, tokens if model.masked else model.multiple, rows)
    return (np.arange(tokens) < tokens - padding[:, None]).astype(np.float32)


def _values(binding: Binding, dims: Dims, rng: np.random.Generator, model: Model) -> Array:
    shape = binding.resolve(dims)
    rows, samples = dims["rows"], dims["samples"]
    limits = {
        "input_ids": model.vocabulary, "row": 100, "cond_row": rows, "uncond_row": rows, "sample_of_row": samples,
        "clip_skip": 2, "image": 256,
    }  # fmt: skip
    ranges = {"timestep": (0.0, 1000.0), "guidance_scale": (0.0, 10.0), "time_ids": (0.0, 1024.0)}
    if binding.name in limits:
        return rng.integers(0, limits[binding.name], shape)
    if binding.name in ranges:
        return rng.uniform(*ranges[binding.name], shape)
    if binding.name == "token_weights":
        return token_weights(model, shape, 0.5, rng)
    if binding.name == "mask":
        return rng.integers(0, 3, shape) / 2
    if binding.name == LORA:
        return lora_values(shape, rng)
    values = rng.standard_normal(shape)
    if binding.name == "table":
        values[..., COLUMNS.index("j")] = rng.integers(0, dims["draws"], shape[:-1])
    return values


def lora_values(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A LoRA for every row: small normal values, so that it changes what comes out and not its size.

    The same LORA_PERIOD of them again and again: a real model's are gigabytes in reference.npz otherwise.
    """
    return np.resize(LORA_SIZE * rng.standard_normal(LORA_PERIOD), shape).astype(np.float32)


def relative_error(actual: Array, expected: Array) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; infinite where a value is not finite."""
    difference = np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64))
    norm = max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30)
    return float(difference) / norm if np.isfinite(difference) else float("inf")
