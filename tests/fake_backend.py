"""A backend that runs tests/fake_bundle.py's graphs in numpy: exact arithmetic by element, so batches change nothing.

The solver executes the real table rows. The other graphs are short and depend on every input they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace

import numpy as np

from engine.binding import Array, Binding, Dims, Graph, PlanPrecision
from runtime.backends.base import HostRow, Launch, in_order
from tests.fake_bundle import COLUMNS, WIDTH


class FakeBuffer:
    """An array; a wrong shape or dtype is refused as every backend does."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array = np.zeros(shape, dtype)
        self.shape = shape

    def write(self, array: Array) -> None:
        if array.shape != self.shape or array.dtype != self.array.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a buffer of {self.array.dtype} {self.shape}")
        self.array[...] = array

    def read(self) -> Array:
        return self.array.copy()

    def save_row(self, index: int) -> HostRow:
        return HostRow.of(self.array, index)

    def load_row(self, index: int, saved: HostRow) -> None:
        self.array[index] = saved.array


class FakeBackend:
    """events: what happened in order: a graph's name for each launch, `mark n` and `wait n`, `close`.

    captures: counts what it was asked to capture, though it launches plainly.
    """

    name, device = "fake", "numpy"

    def __init__(
        self, *, max_rows: int = 8, row_counts: Collection[int] = (), precision: PlanPrecision = "fp32"
    ) -> None:
        self._row_counts, self.precision = row_counts or range(1, max_rows + 1), precision
        self.captures = SimpleNamespace(captured=0, reason=None)
        self.events: list[str] = []
        self.allocated: list[dict[str, int]] = []

    def row_counts(self, height: int, width: int, tokens: int) -> Collection[int]:
        return self._row_counts

    def capture(self, launches: Sequence[Launch]) -> Launch:
        self.captures.captured += 1
        return in_order(launches)

    def allocate(self, binding: Binding, dims: Dims) -> FakeBuffer:
        self.allocated.append(dict(dims))
        return FakeBuffer(binding.resolve(dims), binding.dtype)

    def bind(self, graph: Graph, buffers: Mapping[str, FakeBuffer], dims: Dims) -> Launch:
        inputs = [buffers[binding.name].array for binding in graph.inputs]
        outputs = [buffers[binding.name].array for binding in graph.outputs]
        assert not {id(array) for array in inputs} & {id(array) for array in outputs}, "an output aliases an input"

        def launch() -> None:
            self.events.append(graph.name)
            for target, value in zip(outputs, GRAPHS[graph.name](*inputs), strict=True):
                assert target.shape == value.shape
                target[...] = value

        return launch

    def mark(self) -> Callable[[], None]:
        number = sum(event.startswith("mark") for event in self.events)
        self.events.append(f"mark {number}")
        return lambda: self.events.append(f"wait {number}")

    def close(self) -> None:
        self.events.append("close")


def conditioning(input_ids: Array, token_weights: Array, clip_skip: Array) -> tuple[Array]:
    """Rows in [0, 1), by an exact integer hash of the ids, their places and weights, and the layers skipped."""
    weights = np.rint(token_weights * 1000).astype(np.int64)
    key = ((input_ids.astype(np.int64) + weights) * np.arange(1, input_ids.shape[1] + 1)).sum(1) + 31 * clip_skip
    key %= 991
    return (np.broadcast_to(key[:, None, None] / 991, (*input_ids.shape, WIDTH)).astype(np.float32),)


def encoder(image: Array, image_noise: Array) -> tuple[Array]:
    """A pixel of each place, its three colours and their mean, and an eighth of the noise."""
    colours = image[:, ::8, ::8].transpose(0, 3, 1, 2) / np.float32(128) - 1
    return (np.concatenate([colours, colours.mean(1, keepdims=True)], 1) + image_noise / 8,)


def start(table: Array, noise: Array, image_latents: Array, sample_of_row: Array) -> tuple[Array, ...]:
    row = np.zeros(len(table), np.int32)
    at = _columns(table, row)
    latents = at("a") * image_latents + at("c") * _draw(at, noise)
    history = np.zeros((len(table), 4, *latents.shape[1:]), np.float32)
    return latents, history, row + 1, *_model_input(at, latents, sample_of_row)


def denoiser(sample: Array, timestep: Array, encoder_hidden_states: Array) -> tuple[Array]:
    level, prompt = timestep[:, None, None, None] / 1000, encoder_hidden_states[:, :1, :1, None]
    return (sample * np.float32(0.5) + np.roll(sample, 1, -1) * np.float32(0.25) + level * prompt + prompt,)


def solver(
    noise_pred,
    latents,
    history,
    row,
    table,
    noise,
    guidance_scale,
    cond_row,
    uncond_row,
    sample_of_row,
    image_latents,
    mask,
) -> tuple[Array, ...]:
    cond, uncond = noise_pred[cond_row].astype(np.float32), noise_pred[uncond_row].astype(np.float32)
    e = uncond + guidance_scale[:, None, None, None] * (cond - uncond)
    at = _columns(table, row)
    m = at("p") * latents + at("q") * e
    x = at("a") * latents + at("d") * e + at("b0") * m + at("c") * _draw(at, noise)
    for k in range(4):
        x = x + at(f"b{k + 1}") * history[:, k]
    known = at("u") * image_latents + at("v") * noise[:, 0]
    x = np.where((mask == 1) | ((at("u") == 0) & (at("v") == 0)), x, mask * x + (1 - mask) * known)
    next_history = np.concatenate([m[:, None], history[:, :-1]], 1)
    return x, next_history, np.minimum(row + 1, table.shape[1] - 1), *_model_input(at, x, sample_of_row)


def decoder(latents: Array) -> tuple[Array]:
    pixels = (np.rint(latents[:, :3] * 64).astype(np.int64) % 256).astype(np.uint8)  # nothing saturates
    return (pixels.repeat(8, 2).repeat(8, 3).transpose(0, 2, 3, 1),)


def preview(latents: Array) -> tuple[Array]:
    return ((np.rint(latents[:, :3] * 16).astype(np.int64) % 256).astype(np.uint8).transpose(0, 2, 3, 1),)


def _columns(table: Array, row: Array) -> Callable[[str], Array]:
    values = table[np.arange(len(table)), row]
    return lambda column: values[:, COLUMNS.index(column), None, None, None]


def _draw(at: Callable[[str], Array], noise: Array) -> Array:
    return noise[np.arange(len(noise)), at("j").ravel().astype(int)]


def _model_input(at: Callable[[str], Array], x: Array, sample_of_row: Array) -> tuple[Array, Array]:
    return (at("s") * x)[sample_of_row], at("t").ravel()[sample_of_row]


GRAPHS = {f.__name__: f for f in (conditioning, encoder, start, denoiser, solver, decoder, preview)}
