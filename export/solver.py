"""A diffusers scheduler as a table of coefficients, found by running the real scheduler on basis vectors.

Every linear scheduler obeys, at model evaluation j with model input s·x and output e,

    m = p·x + q·e;   x' = a·x + d·e + Σ_{k=0..4} b_k·m[-k] + c·noise;   next model input = s·x';   next timestep t

so one table row per evaluation replays it. Row 0 starts the loop: x' = c·noise, its model input and timestep.
u and v are of the state that a row leaves: an image noised to it is u·image + v·noise (the image itself at the end).
Does not know graphs or bundles; the graph that executes a row is export/solver_graph.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.tablefile import late_begins
from export.probe import NO_OPTIONS, Probe, Vector, prepared, probe
from export.rows import HISTORY, UPDATE, explained, rows_of
from export.scheduler import make_scheduler, own_name, refusals, unsupported

COLUMNS = (*UPDATE, "j", "s", "t", "u", "v")
MAX_STEPS = 100
OWN_STEPS = 20
ROWS = 200  # the start row, and up to 199 evaluations: what Heun needs for 100 steps
MOST_WARM = 8
WARM_PROBES = (2, 3, 4, 5, 6, 8, 13, 20)
"""Step counts at which every begin is run to its end, to learn how many rows after a begin are its own."""
Table = NDArray[np.float32]

__all__ = ["COLUMNS", "HISTORY", "MAX_STEPS", "ROWS", "Table", "late_rows", "own_scheduler", "table", "warm_count"]


def table(name: str, scheduler: Any, steps: int, options: Mapping[str, Any] = NO_OPTIONS) -> Table:
    """The table of one scheduler at one step count: (evaluations + 1, 15), float32, columns as in COLUMNS.

    options: of the scheduler's step(), such as eta. Raises SchedulerUnsupported where a step is not of the row's form.
    """
    with refusals(name):
        ready = prepared(scheduler, steps)
        run = probe(ready, options=options)
    rows = np.zeros((run.count + 1, len(COLUMNS)))
    at = {column: k for k, column in enumerate(COLUMNS)}
    rows[0, at["c"]] = float(getattr(ready, "init_noise_sigma", 1.0))
    rows[:-1, at["s"]], rows[:-1, at["t"]] = run.scales, run.timesteps
    rows[-1, at["s"]] = 1.0
    rows[:, [at["u"], at["v"]]] = run.noised
    rows[1:, : len(UPDATE)] = _checked(name, run, f"of {steps}")
    noisy = 1 + np.flatnonzero(rows[1:, at["c"]])
    rows[noisy, at["j"]] = 1 + np.arange(len(noisy))
    if not np.isfinite(rows).all() or len(rows) > ROWS:
        raise unsupported(name, f"{len(rows)} rows with infinite numbers at {steps} steps", "Choose another scheduler.")
    return rows.astype(np.float32)


def own_scheduler(config: Mapping[str, Any]) -> str:
    """Our name of the scheduler that a model's scheduler_config describes, or `own`; one table of it was found.

    Raises SchedulerUnsupported, with the reason, where there can be none.
    """
    name = own_name(config)
    table(name, make_scheduler(name, config), OWN_STEPS)
    return name


def _checked(name: str, run: Probe, where: str) -> Vector:
    rows, failed = rows_of(run)
    if failed:
        raise unsupported(name, f"step {failed[0]} {where} does not fit the row", "Choose another scheduler.")
    return rows


def warm_count(
    name: str, scheduler: Any, order: int, options: Mapping[str, Any] = NO_OPTIONS, low: int = 1, high: int = MAX_STEPS
) -> int:
    """How many rows after a late begin differ from the table's: found by running late loops to their end.

    low, high: the step counts that there are tables for.
    """
    most = 0
    for steps in WARM_PROBES:
        if not low <= steps <= high:
            continue
        with refusals(name):
            ready = prepared(scheduler, steps)
            whole = _checked(name, probe(ready, options=options, noised=False), f"of {steps}")
            for begin in range(1, steps):
                late = probe(ready, begin=begin * order, options=options, noised=False)
                most = max(most, _differing(name, whole[begin * order :], late, most))
    return most


def _differing(name: str, suffix: Vector, late: Probe, least: int) -> int:
    """The fewest rows of the late loop's own that, with the rest of the table, explain it."""
    own = _checked(name, late, "after a late begin")
    for count in range(least, MOST_WARM + 1):
        if explained(np.concatenate([own[:count], suffix[count:]]), late).all():
            return count
    raise unsupported(name, f"a late begin that changes more than {MOST_WARM} rows", "Choose another scheduler.")


def late_rows(
    name: str, scheduler: Any, steps: int, order: int, warm: int, options: Mapping[str, Any] = NO_OPTIONS
) -> Table:
    """The rows that each late begin has of its own, one begin after another: (rows, 10), by UPDATE."""
    with refusals(name):
        ready = prepared(scheduler, steps)
        found = [
            _checked(name, probe(ready, begin=first, count=count, options=options, noised=False), "after a late begin")
            for first, count in late_begins(steps, len(ready.timesteps), order, warm)
        ]
    return np.concatenate([np.zeros((0, len(UPDATE))), *found]).astype(np.float32)
