"""All tables of one model: every scheduler asked for, at every step count, eta and late begin, packed into tables.npz.

Knows which schedulers and how they are laid out; how one scheduler's are found is export/tabled.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import OptionInvalid, SchedulerUnsupported
from engine.scheduler_names import SchedulerNames
from engine.schema import SchedulerEntry, Tables
from engine.tablefile import archive, key, packed
from export import table_cache
from export.refused import REFUSED_NAMES
from export.scheduler import kind_of, offer_of, unsupported
from export.schedulers import OFFERS, Offer
from export.solver import COLUMNS, ROWS, Table
from export.table_cache import Tabled
from export.table_workers import probe_side_by_side
from export.tabled import tabled


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
    return Tables(
        file=path.name, rows=ROWS, columns=COLUMNS, schedulers=entries, refused=refused,
        part_counts=kind_of(config) == "flow",
    )  # fmt: skip


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


def _entry(offer: Offer, found: Tabled) -> SchedulerEntry:
    return SchedulerEntry(
        class_name=offer.class_name, settings=dict(offer.settings), min_steps=found.min_steps,
        max_steps=found.max_steps, aliases=offer.aliases, etas=found.etas, order=found.order, warm=found.warm,
    )  # fmt: skip
