"""All tables of one scheduler: every step count, eta and late begin, probed or out of the cache.

How one table is found is export/solver.py's; which schedulers a model gets, export/tables.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import SchedulerUnsupported
from export import table_cache
from export.probe import NO_OPTIONS
from export.scheduler import make_scheduler, offer_of, quiet
from export.solver import MAX_STEPS, Subject, Table
from export.table_cache import Tabled

FEW = 10
"""LCM and TCD take 50 steps at most, no class fewer; PNDM some at least."""


def tabled(name: str, config: Mapping[str, Any], etas: Sequence[float], cache: Path) -> Tabled:
    """One scheduler's tables, out of the cache where they are in it. Raises SchedulerUnsupported."""
    scheduler, asked = make_scheduler(name, config), asked_etas(name, config, etas)
    path = cache / table_cache.entry_name(scheduler, asked)
    found = table_cache.load(path)
    if found is None:
        with quiet():
            found = probed(name, scheduler, asked)
        table_cache.save(path, found)
    return found


def asked_etas(name: str, config: Mapping[str, Any], more: Sequence[float]) -> tuple[float, ...]:
    """The etas that a scheduler should get tables for, its default first; none where it takes none."""
    etas = offer_of(name, config).etas
    return tuple(dict.fromkeys([*etas, *map(float, more)])) if etas else ()


def probed(name: str, scheduler: Any, etas: Sequence[float]) -> Tabled:
    """Probe one scheduler everywhere. Raises SchedulerUnsupported where no step count has a table.

    Another eta than the first is left out where it does not run at every step count of the first: with zero terminal
    SNR diffusers' DDIM takes, for eta 1, the root of a rounding error below zero.
    """
    subject = Subject(name, scheduler)
    first: Mapping[str, float] = {"eta": etas[0]} if etas else NO_OPTIONS
    usual = _all_tables(subject, first)
    others = {eta: found for eta in etas[1:] if {*usual} <= {*(found := _if_any(subject, eta))}}
    every, options = [usual, *others.values()], [first, *({"eta": eta} for eta in others)]
    low, high = min(usual), max(usual)
    warm = max(subject.warm_count(low, high, one) for one in options)
    counts = range(low, high + 1)
    late = [subject.late_rows(counts, warm, one) for one in options] if warm else []
    return Tabled(
        low, high, subject.order, warm, (*etas[:1], *others), [[found[n] for n in counts] for found in every], late
    )


def _if_any(subject: Subject, eta: float) -> dict[int, Table]:
    try:
        return _all_tables(subject, {"eta": eta})
    except SchedulerUnsupported:
        return {}


def _all_tables(subject: Subject, options: Mapping[str, Any]) -> dict[int, Table]:
    """The tables of the step counts that a scheduler takes, one range: some raise below a least or above a most.

    Raises SchedulerUnsupported where the range ends below FEW steps: such a loop goes wrong and is not just limited.
    """
    found: dict[int, Table] = {}
    for steps in range(1, MAX_STEPS + 1):
        try:
            found[steps] = subject.table(steps, options)
        except SchedulerUnsupported:  # noqa: PERF203 - only at the ends of the range
            if found and max(found) >= FEW:
                return found
            if found or steps == MAX_STEPS:
                raise
    return found
