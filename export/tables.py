"""All tables of one model: every scheduler asked for, at every step count, eta and late begin, packed into tables.npz.

Knows which schedulers and how they are laid out; how one table is found is export/solver.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.bundle import SchedulerEntry, Tables
from engine.errors import OptionInvalid, SchedulerUnsupported
from engine.scheduler_names import SchedulerNames
from engine.tablefile import archive, key, packed
from export import table_cache
from export.probe import NO_OPTIONS
from export.refused import REFUSED_NAMES
from export.scheduler import make_scheduler, offer_of, quiet, unsupported
from export.schedulers import OFFERS, Offer
from export.solver import COLUMNS, MAX_STEPS, ROWS, Subject, Table
from export.table_cache import Tabled

FEW = 10
"""LCM and TCD take 50 steps at most, no class fewer; PNDM some at least."""


def write_tables(
    config: Mapping[str, Any],
    default: str,
    path: Path,
    names: Sequence[str] | None = None,
    etas: Sequence[float] = (),
    cache: Path | None = None,
) -> Tables:
    """Write tables.npz for a model's scheduler_config and return what bundle.json says of it.

    names: None takes every scheduler, and says in `refused` why one has no tables; one asked for by name raises
    SchedulerUnsupported instead. The default is always among them. etas: beside those that each scheduler has anyway.
    cache: a folder for tables that were probed before; None takes the platform's.
    """
    from export.table_workers import probe_side_by_side

    wanted = list(dict.fromkeys([*(OFFERS if names is None else map(our_name, names)), default]))
    folder = cache or table_cache.default_folder()
    probe_side_by_side(config, wanted, etas, folder)
    entries, tables, late = dict[str, SchedulerEntry](), dict[str, Sequence[Table]](), dict[str, Sequence[Table]]()
    refused = dict(REFUSED_NAMES)
    for name in wanted:
        try:
            found = tabled(name, config, etas, folder)
        except SchedulerUnsupported as error:
            if names is not None or name == default:
                raise
            refused |= dict.fromkeys((name, *OFFERS[name].aliases), error.actual)
            continue
        offer = offer_of(name, config)
        entries[name] = _entry(offer, found)
        where = [key(name, found.etas, eta) for eta in found.etas] or [name]
        tables |= dict(zip(where, found.tables, strict=True))
        late |= dict(zip(where, found.late, strict=True)) if found.warm else {}
    path.write_bytes(archive(packed(tables, late)))
    return Tables(file=path.name, rows=ROWS, columns=COLUMNS, schedulers=entries, refused=refused)


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


def _entry(offer: Offer, found: Tabled) -> SchedulerEntry:
    return SchedulerEntry(
        class_name=offer.class_name, settings=dict(offer.settings), min_steps=found.min_steps,
        max_steps=found.max_steps, aliases=offer.aliases, etas=found.etas, order=found.order, warm=found.warm,
    )  # fmt: skip
