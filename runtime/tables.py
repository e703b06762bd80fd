"""The solver tables of a bundle: one array per scheduler and step count, and what the host must know of it.

The host reads one column, which draw of noise a row uses, and writes rows that keep a finished sample as it is.
The rest is the solver graph's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.binding import Float32Array
from engine.bundle import Bundle, SchedulerEntry, verified_path
from engine.errors import BundleInvalid, RequestInvalid

KEEP_COLUMNS = ("a", "s")
"""1 in these and 0 elsewhere is the row that leaves latents as they are."""
HOST_COLUMNS = ("j", *KEEP_COLUMNS)


@dataclass(frozen=True, slots=True)
class Table:
    """One scheduler at one step count.

    rows: (evaluations + 1, columns) float32. draws: how many draws of noise it uses, the initial one included.
    """

    rows: Float32Array
    draws: int

    @property
    def evaluations(self) -> int:
        """Model evaluations: the loop's length for this table."""
        return len(self.rows) - 1


class Tables:
    """Every table of tables.npz: read, checked and kept when the bundle is opened (500 tables: 1.3 MB, 60 ms)."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._entry, self._name = bundle.tables, bundle.name
        self._columns = bundle.tables.columns
        path = verified_path(folder, bundle, bundle.tables.file)
        if missing := [column for column in HOST_COLUMNS if column not in self._columns]:
            raise _invalid(f"{path}, columns", ", ".join(self._columns), f"'{missing[0]}' among them")
        arrays = _read(path)
        self._tables = {
            (name, steps): self._table(path, arrays, f"{name}/{steps}")
            for name, entry in bundle.tables.schedulers.items()
            for steps in range(entry.min_steps, entry.max_steps + 1)
        }

    def get(self, scheduler: str, steps: int, *, begin: int = 0) -> Table:
        """The table of a scheduler at a step count. Raises RequestInvalid for either."""
        entry = self._scheduler(scheduler)
        if not entry.min_steps <= steps <= entry.max_steps:
            raise RequestInvalid(
                f"request, num_inference_steps with scheduler '{scheduler}'", actual=str(steps),
                allowed=f"{entry.min_steps} to {entry.max_steps}", remedy="Change the steps or the scheduler.",
            )  # fmt: skip
        return self._begun(self._tables[scheduler, steps], begin) if begin else self._tables[scheduler, steps]

    def _begun(self, table: Table, begin: int) -> Table:
        """A stand-in, right for schedulers of one evaluation a step and no history."""
        at = self._columns.index
        rows = table.rows[begin:].copy()
        start = np.zeros_like(rows[0])
        for column in ("s", "t", "u", "v"):
            start[at(column)] = rows[0, at(column)]
        start[at("a")], start[at("c")] = start[at("u")], start[at("v")]
        rows[0] = start
        noisy = np.flatnonzero(rows[1:, at("j")]) + 1
        rows[noisy, at("j")] = np.arange(1, len(noisy) + 1)
        return Table(rows, 1 + len(noisy))

    def padded(self, tables: Sequence[Table]) -> Float32Array:
        """(samples, rows, columns): each table, then rows that leave its latents as they are."""
        batch = np.zeros((len(tables), self._entry.rows, len(self._columns)), np.float32)
        for column in KEEP_COLUMNS:
            batch[:, :, self._columns.index(column)] = 1.0
        for k, table in enumerate(tables):
            batch[k, : len(table.rows)] = table.rows
        return batch

    def _table(self, path: Path, arrays: dict[str, Any], key: str) -> Table:
        """One table. Raises BundleInvalid where it is missing, or the host or the solver could not run it."""
        rows = arrays.get(key)
        if rows is None or rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != len(self._columns):
            found = "nothing" if rows is None else f"{rows.dtype} {rows.shape}"
            raise _invalid(f"{path}, '{key}'", found, f"float32 (evaluations + 1, {len(self._columns)})")
        draw = rows[:, self._columns.index("j")]
        fits = 2 <= len(rows) <= self._entry.rows and np.isfinite(rows).all()
        if not fits or draw.min() < 0 or draw.max() >= len(rows):
            allowed = f"2 to {self._entry.rows} rows of finite numbers, each naming a draw there is"
            raise _invalid(f"{path}, '{key}'", f"{len(rows)} rows that no loop can run", allowed)
        return Table(rows, 1 + int(draw.max()))

    def _scheduler(self, name: str) -> SchedulerEntry:
        if name not in self._entry.schedulers:
            raise RequestInvalid(
                "request, scheduler", actual=repr(name), allowed=", ".join(self._entry.schedulers),
                remedy=f"Name one that bundle '{self._name}' has tables for.",
            )  # fmt: skip
        return self._entry.schedulers[name]


def _read(path: Path) -> dict[str, Any]:
    """Every array of the file by name, but no pickles. Raises BundleInvalid."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise _invalid(str(path), f"{type(error).__name__}: {error}", "an .npz of tables") from error


def _invalid(subject: str, actual: str, allowed: str) -> BundleInvalid:
    return BundleInvalid(subject, actual=actual, allowed=allowed, remedy="Run `zturbo export` again.")
