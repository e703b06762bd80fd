"""A diffusers scheduler as a table of coefficients, found by running the real scheduler on basis vectors.

Every linear scheduler obeys, at model evaluation j with model input s·x and output e,

    m = p·x + q·e;   x' = a·x + d·e + Σ_{k=0..4} b_k·m[-k] + c·noise;   next model input = s·x';   next timestep t

so one table row per evaluation replays it. Row 0 starts the loop: x' = c·noise, its model input and timestep.
u and v are of the state that a row leaves: an image noised to it is u·image + v·noise (the image itself at the end).
Does not know graphs or bundles; the graph that executes a row is export/solver_graph.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.tablefile import late_begins
from export.probe import NO_OPTIONS, Probe, Vector, prepared, probe, together
from export.rows import HISTORY, UPDATE, D, explained, rows_of
from export.scheduler import make_scheduler, own_name, quiet, refusals, unsupported

COLUMNS = (*UPDATE, "j", "s", "t", "u", "v")
AT = {column: k for k, column in enumerate(COLUMNS)}
MAX_STEPS = 100
OWN_STEPS = 20
ROWS = 200  # the start row, and up to 199 evaluations: what Heun needs for 100 steps
MOST_WARM = 8
WARM_PROBES = (2, 3, 4, 5, 6, 8, 13)
"""Step counts at which every begin is run to its end, to learn how many rows after a begin are its own."""
LATE = "after a late begin"
Table = NDArray[np.float32]

__all__ = ["COLUMNS", "HISTORY", "MAX_STEPS", "ROWS", "Subject", "Table", "check_scheduler", "own_scheduler", "table"]


def table(name: str, scheduler: Any, steps: int, options: Mapping[str, Any] = NO_OPTIONS) -> Table:
    """One table of a scheduler; see Subject.table."""
    return Subject(name, scheduler).table(steps, options)


def own_scheduler(config: Mapping[str, Any]) -> str:
    """Our name of the scheduler that a model's scheduler_config describes, or `own`; one table of it was found.

    Raises SchedulerUnsupported, with the reason, where there can be none.
    """
    name = own_name(config)
    check_scheduler(name, config)
    return name


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Raise SchedulerUnsupported where a scheduler has no tables over this scheduler_config."""
    with quiet():
        table(name, make_scheduler(name, config), OWN_STEPS)


class Subject:
    """A scheduler under probing; its timesteps are set once for each step count.

    options: of the scheduler's step(), such as eta. Every method raises SchedulerUnsupported where a step is not of the
    row's form.
    """

    def __init__(self, name: str, scheduler: Any) -> None:
        self.name, self.order = name, int(getattr(scheduler, "order", 1))
        self._scheduler = scheduler
        self._ready: dict[int, Any] = {}
        self._ahead = 0

    def table(self, steps: int, options: Mapping[str, Any] = NO_OPTIONS) -> Table:
        """The table at one step count: (evaluations + 1, 15), float32, columns as in COLUMNS."""
        with refusals(self.name):
            ready = self._prepared(steps)
            run = probe(ready, options=options)
        rows = np.zeros((run.count + 1, len(COLUMNS)))
        rows[0, AT["c"]] = float(getattr(ready, "init_noise_sigma", 1.0))
        rows[:-1, AT["s"]], rows[:-1, AT["t"]] = run.scales[0], run.timesteps[0]
        rows[-1, AT["s"]] = 1.0
        rows[:, [AT["u"], AT["v"]]] = run.noised[0]
        rows[1:, : len(UPDATE)] = self._rows(run, f"of {steps}")[0]
        noisy = 1 + np.flatnonzero(rows[1:, AT["c"]])
        rows[noisy, AT["j"]] = 1 + np.arange(len(noisy))
        if not np.isfinite(rows).all() or len(rows) > ROWS:
            raise self._unsupported(f"{len(rows)} rows, or one of infinite numbers, at {steps} steps")
        return rows.astype(np.float32)

    def warm_count(self, low: int, high: int, options: Mapping[str, Any] = NO_OPTIONS) -> int:
        """How many rows after a late begin differ from the table's: found by running late loops to their end.

        low, high: the step counts that there are tables for.
        """
        most = 0
        for steps in (steps for steps in WARM_PROBES if low <= steps <= high):
            with refusals(self.name):
                ready = self._prepared(steps)
                whole = self._rows(probe(ready, options=options, noised=False), f"of {steps}")
                if whole[..., D].any():  # rows in pairs: a row's m is what the next one needs, so that is looked at too
                    self._ahead = 1
                for begin in range(self.order, steps * self.order, self.order):
                    late = probe(ready, begin=begin, options=options, noised=False)
                    most = self._differing(whole[:, begin:], late, most)
        return most

    def late_rows(self, counts: Iterable[int], warm: int, options: Mapping[str, Any] = NO_OPTIONS) -> list[Table]:
        """The rows that each late begin has of its own, for each step count, one begin after another: (rows, 10).

        `warm_count` ran before.
        """
        runs, owners = defaultdict[int, list[Probe]](list), defaultdict[int, list[tuple[int, int, int]]](list)
        for steps in (counts := list(counts)):
            with refusals(self.name):
                ready = self._prepared(steps)
                for first, count in late_begins(steps, len(ready.timesteps), self.order, warm) if warm else ():
                    run = probe(ready, begin=first, count=count + self._ahead, options=options, noised=False)
                    runs[run.count].append(run)
                    owners[run.count].append((steps, first, count))
        found: dict[tuple[int, int], Vector] = {}
        for count, some in runs.items():  # loops of one length are fitted at once
            every = zip(owners[count], self._rows(together(some), LATE), strict=True)
            found |= {(steps, first): rows[:own] for (steps, first, own), rows in every}
        none = np.zeros((0, len(UPDATE)))
        return [
            np.concatenate([none, *(found[n, begin * self.order] for begin in range(1, n if warm else 1))]).astype(
                np.float32
            )
            for n in counts
        ]

    def _differing(self, suffix: Vector, late: Probe, least: int) -> int:
        """The fewest rows of the late loop's own that, with the rest of the table, explain it."""
        own = self._rows(late, LATE)
        for count in range(least, MOST_WARM + 1):
            if explained(np.concatenate([own[:, :count], suffix[:, count:]], 1), late).all():
                return count
        raise self._unsupported(f"a late begin that changes more than {MOST_WARM} rows")

    def _rows(self, runs: Probe, where: str) -> Vector:
        if not (np.isfinite(runs.states).all() and np.isfinite(runs.memory).all()):
            raise self._unsupported(f"a loop {where} that is not finite in diffusers either")
        rows, failed = rows_of(runs)
        if failed.any():
            raise self._unsupported(f"step {failed.any(0).argmax()} {where} does not fit the row")
        return rows

    def _prepared(self, steps: int) -> Any:
        if steps not in self._ready:
            self._ready[steps] = prepared(self._scheduler, steps)
        return self._ready[steps]

    def _unsupported(self, actual: str) -> Exception:
        return unsupported(self.name, actual, "Choose another scheduler.")
