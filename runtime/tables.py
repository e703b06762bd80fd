"""The solver tables of a bundle: one per scheduler, step count, eta and begin, and what the host must know of it.

The host reads which draw of noise a row uses, composes the table of a loop that begins late (img2img) out of what is
stored, and writes rows that keep a finished sample as it is. The rest is the solver graph's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.binding import Float32Array
from engine.bundle import Bundle, verified_path
from engine.errors import BundleInvalid, RequestInvalid
from engine.scheduler_names import SchedulerNames
from engine.schema import SchedulerEntry
from engine.tablefile import WARM_COLUMNS, Stored, TableFile, key, late_begins

KEEP_COLUMNS = ("a", "s")
"""1 in these and 0 elsewhere is the row that leaves latents as they are."""
START_COLUMNS = {"a": "u", "c": "v"}
"""Row 0 of a loop that starts from an image: a·image + c·noise is what the state of that row's u and v is."""
KEPT = 512
"""Composed tables that stay; the least recently used goes first."""
MANY = 20
"""Names are counted, not listed, where there are more."""
HOST_COLUMNS = ("j", "c", *KEEP_COLUMNS)


@dataclass(frozen=True, slots=True)
class Table:
    """One scheduler at one step count, from one begin on.

    rows: (evaluations + 1, columns) float32. draws: how many draws of noise it uses, the initial one included.
    name: our name of the scheduler.
    """

    rows: Float32Array
    draws: int
    name: str = ""

    @property
    def evaluations(self) -> int:
        """Model evaluations: the loop's length for this table."""
        return len(self.rows) - 1


class Tables:
    """The tables of tables.npz: its hash and its list are checked when the bundle is opened, a scheduler when used."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._entry, self._columns = bundle.tables, bundle.tables.columns
        aliases = {name: entry.aliases for name, entry in bundle.tables.schedulers.items()}
        self._bundle, self._names = bundle.name, SchedulerNames(aliases, bundle.tables.refused)
        self._path = verified_path(folder, bundle, bundle.tables.file)
        if missing := [column for column in HOST_COLUMNS if column not in self._columns]:
            raise _invalid(f"{self._path}, columns", ", ".join(self._columns), f"'{missing[0]}' among them")
        try:
            self._file = TableFile(self._path.read_bytes())
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise _invalid(str(self._path), f"{type(error).__name__}: {error}", "an .npz of tables") from error
        for name in bundle.tables.schedulers:
            if name not in self._file:
                raise _invalid(f"{self._path}, '{name}'", "nothing", "its tables")
        self._stored: dict[str, Stored] = {}
        self._composed: OrderedDict[tuple[str, int, int, bool], Table] = OrderedDict()

    def get(
        self, scheduler: str, steps: int, *, eta: float | None = None, begin: int = 0, image: bool = False
    ) -> Table:
        """The table of a scheduler, by any of its names, at a step count. Raises RequestInvalid, and BundleInvalid
        where its part of the file is not what export wrote.

        eta: None takes the scheduler's own. begin: scheduler steps that are left out at the start. image: row 0 starts
        from image latents with noise; a late begin always does.
        """
        name = self._canonical(scheduler)
        entry = self._entry.schedulers[name]
        _check_steps(scheduler, entry, steps, begin)
        _check_eta(scheduler, entry, eta)
        eta = None if eta is None else abs(eta)  # −0 is 0
        where = key(name, entry.etas, eta), steps, begin, image or begin > 0
        if where not in self._composed:
            self._composed[where] = self._compose(name, entry, *where)
        self._composed.move_to_end(where)
        while len(self._composed) > KEPT:
            self._composed.popitem(last=False)
        return self._composed[where]

    def padded(self, tables: Sequence[Table]) -> Float32Array:
        """(samples, rows, columns): each table, then rows that leave its latents as they are."""
        batch = np.zeros((len(tables), self._entry.rows, len(self._columns)), np.float32)
        for column in KEEP_COLUMNS:
            batch[:, :, self._at(column)] = 1.0
        for k, table in enumerate(tables):
            batch[k, : len(table.rows)] = table.rows
        return batch

    def _canonical(self, scheduler: str) -> str:
        """Our name of the scheduler. Raises RequestInvalid, with the reason where export refused it."""
        name, reason = self._names.find(scheduler), self._names.refusal(scheduler)
        if name is None:
            remedy = f"Name one that bundle '{self._bundle}' has tables for.{self._names.hint(scheduler)}"
            actual = f"{scheduler!r}, which has no tables: {reason}" if reason else repr(scheduler)
            names = list(self._entry.schedulers)
            allowed = ", ".join(names) if len(names) <= MANY else f"{len(names)} names, as `zturbo inspect` lists them"
            raise RequestInvalid("request, scheduler", actual=actual, allowed=allowed, remedy=remedy)
        return name

    def _compose(self, name: str, entry: SchedulerEntry, where: str, steps: int, begin: int, image: bool) -> Table:
        """The start row, the rows of a scheduler without history, and what the table has after them."""
        whole = self._rows(where, entry, steps)
        first = begin * entry.order
        rows = whole[first:].copy()
        if image:
            self._start_from_image(rows, f"{where}/{steps}")
        if begin and entry.warm:
            warm = self._warm(where, entry, steps, len(whole) - 1, begin)
            rows[1 : 1 + len(warm), [self._at(column) for column in WARM_COLUMNS]] = warm
        draws = self._numbered(rows)
        rows.setflags(write=False)
        return Table(rows, draws, name)

    def _start_from_image(self, rows: Float32Array, subject: str) -> None:
        """Make row 0 the noised image; only its model input and timestep stay."""
        if missing := [column for column in START_COLUMNS.values() if column not in self._columns]:
            raise _invalid(f"{self._path}, columns for {subject}", ", ".join(self._columns), f"'{missing[0]}' in them")
        start = {column: rows[0, self._at(source)] for column, source in START_COLUMNS.items()}
        rows[0, [self._at(column) for column in WARM_COLUMNS if column in self._columns]] = 0
        for column, value in start.items():
            rows[0, self._at(column)] = value

    def _numbered(self, rows: Float32Array) -> int:
        """Number the draws of noise in the order they are used in; row 0 has draw 0. Returns how many there are."""
        noisy = 1 + np.flatnonzero(rows[1:, self._at("c")])
        rows[:, self._at("j")] = 0
        rows[noisy, self._at("j")] = 1 + np.arange(len(noisy))
        return 1 + len(noisy)

    def _rows(self, where: str, entry: SchedulerEntry, steps: int) -> Float32Array:
        """One stored table. Raises BundleInvalid where it is missing, or the solver could not run it."""
        rows = self._read(where, entry).at(steps - entry.min_steps)
        draw = rows[:, self._at("j")]
        fits = 2 <= len(rows) <= self._entry.rows and np.isfinite(rows).all()
        if not fits or draw.min() < 0 or draw.max() >= len(rows):
            allowed = f"2 to {self._entry.rows} rows of finite numbers, each naming a draw there is"
            raise _invalid(f"{self._path}, '{where}/{steps}'", f"{len(rows)} rows that no loop can run", allowed)
        return rows

    def _warm(self, where: str, entry: SchedulerEntry, steps: int, evaluations: int, begin: int) -> Float32Array:
        """The rows of one late begin. Raises BundleInvalid."""
        stored = self._read(where, entry, warm=True).at(steps - entry.min_steps)
        counts = [count for _, count in late_begins(steps, evaluations, entry.order, entry.warm)]
        if len(stored) != sum(counts) or not np.isfinite(stored).all():
            allowed = f"{sum(counts)} rows of finite numbers"
            raise _invalid(f"{self._path}, '{where}/{steps}', late begins", f"{len(stored)} rows", allowed)
        at = sum(counts[: begin - 1])
        return stored[at : at + counts[begin - 1]]

    def _read(self, where: str, entry: SchedulerEntry, *, warm: bool = False) -> Stored:
        name = f"{where}, late begins" if warm else where
        if name not in self._stored:
            try:
                stored = self._file.warm(where) if warm else self._file.table(where, len(self._columns))
            except Exception as error:  # zipfile, zlib and numpy each raise their own
                found = f"{type(error).__name__}: {error}"
                raise _invalid(f"{self._path}, '{name}'", found, "the tables that export wrote") from error
            if len(stored.counts) != (count := entry.max_steps - entry.min_steps + 1):
                raise _invalid(f"{self._path}, '{name}'", f"{len(stored.counts)} tables", f"{count} tables")
            self._stored[name] = stored
        return self._stored[name]

    def _at(self, column: str) -> int:
        return self._columns.index(column)


def _check_steps(scheduler: str, entry: SchedulerEntry, steps: int, begin: int) -> None:
    if not entry.min_steps <= steps <= entry.max_steps:
        raise RequestInvalid(
            f"request, num_inference_steps with scheduler '{scheduler}'", actual=str(steps),
            allowed=f"{entry.min_steps} to {entry.max_steps}", remedy="Change the steps or the scheduler.",
        )  # fmt: skip
    if not 0 <= begin < steps:
        raise RequestInvalid(
            "request, strength", actual=f"a begin after {begin} of {steps} steps", allowed=f"0 to {steps - 1}",
            remedy="Raise the strength or the steps: at least one step must be left.",
        )  # fmt: skip


def _check_eta(scheduler: str, entry: SchedulerEntry, eta: float | None) -> None:
    if eta is None or eta in entry.etas:
        return
    remedy = f"Run `zturbo export --eta {eta:g}` for tables of it, unless diffusers cannot run it with this model."
    if not entry.etas:
        remedy = "Leave eta out."
    raise RequestInvalid(
        f"request, eta with scheduler '{scheduler}'", actual=f"{eta:g}",
        allowed=", ".join(f"{one:g}" for one in entry.etas) or "none: the scheduler takes no eta", remedy=remedy,
    )  # fmt: skip


def _invalid(subject: str, actual: str, allowed: str) -> BundleInvalid:
    return BundleInvalid(subject, actual=actual, allowed=allowed, remedy="Run `zturbo export` again.")
