"""All tables of one model: every scheduler asked for, at every step count, eta and late begin, packed into tables.npz.

Knows which schedulers and how they are laid out; how one table is found is export/solver.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle import SchedulerEntry, Tables
from engine.errors import OptionInvalid, SchedulerUnsupported
from engine.scheduler_names import SchedulerNames
from engine.tablefile import key, packed
from export.refused import REFUSED_NAMES
from export.scheduler import make_scheduler, offer_of, unsupported
from export.schedulers import OFFERS, Offer
from export.solver import COLUMNS, MAX_STEPS, ROWS, Table, late_rows, table, warm_count


@dataclass(frozen=True, slots=True, eq=False)
class Tabled:
    """One scheduler's tables. tables, late: by eta's place in `etas` (one where it takes none), then by step count."""

    min_steps: int
    max_steps: int
    order: int
    warm: int
    tables: list[list[Table]]
    late: list[list[Table]]


def tabled(name: str, config: Mapping[str, Any], etas: Sequence[float]) -> Tabled:
    """Probe one scheduler everywhere. Raises SchedulerUnsupported where no step count has a table."""
    scheduler = make_scheduler(name, config)
    order = int(scheduler.order)
    options: list[dict[str, float]] = [{"eta": eta} for eta in etas] or [{}]
    tables = [all_tables(name, scheduler, one) for one in options]
    low, high = max(min(found) for found in tables), min(max(found) for found in tables)
    warm = max(warm_count(name, scheduler, order, one, low, high) for one in options)
    counts = range(low, high + 1)
    late = [[late_rows(name, scheduler, n, order, warm, one) for n in counts] for one in options] if warm else []
    return Tabled(low, high, order, warm, [[found[n] for n in counts] for found in tables], late)


def all_tables(name: str, scheduler: Any, options: Mapping[str, Any]) -> dict[int, Table]:
    """The tables of the step counts that a scheduler takes, one range: some raise below a least or above a most."""
    found: dict[int, Table] = {}
    for steps in range(1, MAX_STEPS + 1):
        try:
            found[steps] = table(name, scheduler, steps, options)
        except SchedulerUnsupported:  # noqa: PERF203 - only at the ends of the range
            if found:
                return found
            if steps == MAX_STEPS:
                raise
    return found


def our_name(asked: str) -> str:
    """The name of ours that a name means. Raises SchedulerUnsupported where it is refused, else OptionInvalid."""
    names = SchedulerNames({name: offer.aliases for name, offer in OFFERS.items()}, REFUSED_NAMES)
    name, reason = names.find(asked), names.refusal(asked)
    if name is None and reason is not None:
        raise unsupported(asked, reason, "Choose another scheduler.")
    if name is None:
        raise OptionInvalid(
            "export, schedulers", actual=repr(asked), allowed="the names in docs/schedulers.md",
            remedy=f"Correct the name.{names.hint(asked)}",
        )  # fmt: skip
    return name


def write_tables(
    config: Mapping[str, Any], default: str, path: Path, names: Sequence[str] | None = None, etas: Sequence[float] = ()
) -> Tables:
    """Write tables.npz for a model's scheduler_config and return what bundle.json says of it.

    names: None takes every scheduler, and says in `refused` why one has no tables; one asked for by name raises
    SchedulerUnsupported instead. The default is always among them. etas: beside those that each scheduler has anyway.
    """
    wanted = dict.fromkeys([*(OFFERS if names is None else map(our_name, names)), default])
    entries, tables, late = dict[str, SchedulerEntry](), dict[str, list[Table]](), dict[str, list[Table]]()
    refused = dict(REFUSED_NAMES)
    for name in wanted:
        try:
            offer = offer_of(name, config)
            taken = tuple(dict.fromkeys([*offer.etas, *etas])) if offer.etas else ()
            found = tabled(name, config, taken)
        except SchedulerUnsupported as error:
            if names is not None or name == default:
                raise
            refused |= dict.fromkeys((name, *OFFERS[name].aliases), error.actual)
            continue
        entries[name] = _entry(offer, found, taken)
        where = [key(name, taken, eta) for eta in taken] or [name]
        tables |= dict(zip(where, found.tables, strict=True))
        late |= dict(zip(where, found.late, strict=True)) if found.warm else {}
    np.savez_compressed(path, **packed(tables, late))
    return Tables(file=path.name, rows=ROWS, columns=COLUMNS, schedulers=entries, refused=refused)


def _entry(offer: Offer, found: Tabled, etas: tuple[float, ...]) -> SchedulerEntry:
    return SchedulerEntry(
        class_name=offer.class_name, settings=dict(offer.settings), min_steps=found.min_steps,
        max_steps=found.max_steps, aliases=offer.aliases, etas=etas, order=found.order, warm=found.warm,
    )  # fmt: skip
