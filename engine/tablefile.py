"""The layout of tables.npz, both ways: the solver tables of every scheduler, and the rows where a late begin differs.

A table is kept by its columns, and a column of all step counts is one array: schedulers that share timesteps share the
arrays. Knows positions, not what a column means.

    <key>/rows          int32 (n,)            rows of the table at each step count, the least first
    <key>/columns       int32 (columns,)      which array each column is; −1 is all zeros
    <key>/warm_rows     int32 (n,)            the same of the rows for late begins; missing where no begin differs
    <key>/warm_columns  int32 (10,)           WARM_COLUMNS
    pool/<number>       uint8 (4, length)     float32, split into the planes of its bytes: deflate finds more to say
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.binding import Float32Array

WARM_COLUMNS = ("p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4", "c")
"""What a late begin changes: the update itself, neither times nor scales."""
ZEROS = -1


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """All tables of one scheduler at one eta, one after another: (rows, columns); `counts` says where each ends."""

    values: Float32Array
    counts: tuple[int, ...]

    def at(self, index: int) -> Float32Array:
        """The table of the index-th step count."""
        begin = sum(self.counts[:index])
        return self.values[begin : begin + self.counts[index]]


def key(name: str, etas: Sequence[float], eta: float | None) -> str:
    """Where a scheduler's tables lie: under its name, and for another eta than the first under name@eta."""
    return name if eta is None or eta == etas[0] else f"{name}@{eta:g}"


def packed(tables: Mapping[str, Sequence[Float32Array]], warm: Mapping[str, Sequence[Float32Array]]) -> dict[str, Any]:
    """The arrays of the file, by name. tables, warm: per key, one array for each step count."""
    pool: dict[bytes, int] = {}
    arrays: dict[str, Any] = {}
    for kind, stored in (("", tables), ("warm_", warm)):
        for name, parts in stored.items():
            arrays[f"{name}/{kind}rows"] = np.array([len(part) for part in parts], np.int32)
            columns = np.concatenate(parts).T
            arrays[f"{name}/{kind}columns"] = np.array([_number(column, pool) for column in columns], np.int32)
    for raw, number in pool.items():
        arrays[f"pool/{number}"] = np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(-1, 4).T)
    return arrays


def archive(arrays: Mapping[str, Any]) -> bytes:
    """The arrays as the bytes of a compressed .npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _number(column: Float32Array, pool: dict[bytes, int]) -> int:
    return pool.setdefault(column.astype("<f4").tobytes(), len(pool)) if column.any() else ZEROS


class TableFile:
    """An opened tables.npz; each scheduler's arrays are read when they are asked for. ValueError: not this layout.

    What zipfile, zlib and numpy raise on damage passes through.
    """

    def __init__(self, raw: bytes) -> None:
        arrays = np.load(io.BytesIO(raw), allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise TypeError("one array, no archive")
        self._arrays = arrays
        self._names = frozenset(arrays.files)

    def __contains__(self, name: str) -> bool:
        return f"{name}/rows" in self._names

    def table(self, name: str, columns: int) -> Stored:
        """The tables of a key."""
        return self._stored(f"{name}/", columns)

    def warm(self, name: str) -> Stored:
        """The rows of a key's late begins: (rows, 10) for each step count."""
        return self._stored(f"{name}/warm_", len(WARM_COLUMNS))

    def _stored(self, prefix: str, columns: int) -> Stored:
        counts = self.integers(f"{prefix}rows")
        numbers = self.integers(f"{prefix}columns")
        if len(numbers) != columns or min(counts, default=-1) < 0:
            raise ValueError(f"'{prefix}columns': {len(numbers)} columns, expected {columns}")
        total = sum(counts)
        values = np.stack([self._column(number, total) for number in numbers], 1)
        return Stored(values, tuple(counts))

    def integers(self, name: str) -> list[int]:
        """One of the arrays of whole numbers."""
        array = self._arrays[name]
        if array.dtype != np.int32 or array.ndim != 1:
            raise ValueError(f"'{name}': {array.dtype} {array.shape}, expected int32 and one axis")
        return [int(value) for value in array]

    def _column(self, number: int, length: int) -> Float32Array:
        if number == ZEROS:
            return np.zeros(length, np.float32)
        planes = self._arrays[f"pool/{number}"]
        if planes.dtype != np.uint8 or planes.shape != (4, length):
            raise ValueError(f"'pool/{number}': {planes.dtype} {planes.shape}, expected uint8 (4, {length})")
        return np.ascontiguousarray(planes.T).view("<f4")[:, 0].astype(np.float32, copy=False)


def late_begins(steps: int, evaluations: int, order: int, warm: int) -> Iterable[tuple[int, int]]:
    """(first evaluation, rows of its own) of each begin after the first, in the order they are stored in."""
    for begin in range(1, steps):
        first = begin * order
        yield first, min(warm, evaluations - first)
