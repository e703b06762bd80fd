"""The solver tables of a bundle: one array per scheduler and step count, and what the host must know of it.

The host reads two columns only: which draw of noise a row uses, and how much of it. The rest is the solver graph's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.bundle import Bundle, SchedulerEntry, verified_path
from engine.errors import BundleInvalid, RequestInvalid

Float32Array = NDArray[np.float32]


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
    """Reads tables.npz, once per scheduler and step count; the file's hash is checked when it is opened."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._entry, self._name = bundle.tables, bundle.name
        self._columns = bundle.tables.columns
        path = verified_path(folder, bundle, bundle.tables.file)
        try:
            self._arrays = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleInvalid(
                str(path), actual=str(error), allowed="an .npz of tables", remedy="Run `zturbo export` again."
            ) from error
        self._cache: dict[tuple[str, int], Table] = {}

    def get(self, scheduler: str, steps: int) -> Table:
        """The table of a scheduler at a step count. Raises RequestInvalid for either."""
        entry = self._scheduler(scheduler)
        if not entry.min_steps <= steps <= entry.max_steps:
            raise RequestInvalid(
                f"request, num_inference_steps with scheduler '{scheduler}'", actual=str(steps),
                allowed=f"{entry.min_steps} to {entry.max_steps}", remedy="Change the steps or the scheduler.",
            )  # fmt: skip
        key = (scheduler, steps)
        if key not in self._cache:
            rows = self._arrays[f"{scheduler}/{steps}"]
            self._cache[key] = Table(rows, 1 + int(rows[:, self._columns.index("j")].max()))
        return self._cache[key]

    def padded(self, tables: Sequence[Table]) -> Float32Array:
        """(samples, rows, columns): each table, then rows that leave its latents as they are."""
        batch = np.zeros((len(tables), self._entry.rows, len(self._columns)), np.float32)
        for column in ("a", "s"):
            batch[:, :, self._columns.index(column)] = 1.0
        for k, table in enumerate(tables):
            batch[k, : len(table.rows)] = table.rows
        return batch

    def close(self) -> None:
        """Close the file."""
        self._arrays.close()

    def _scheduler(self, name: str) -> SchedulerEntry:
        if name not in self._entry.schedulers:
            raise RequestInvalid(
                "request, scheduler", actual=repr(name), allowed=", ".join(self._entry.schedulers),
                remedy=f"Name one that bundle '{self._name}' has tables for.",
            )  # fmt: skip
        return self._entry.schedulers[name]
