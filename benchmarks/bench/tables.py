"""A result on the console. What the figures are is benchmarks/bench/rows.py's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.bench import rows


def print_tables(result: Mapping[str, Any], console: Console) -> None:
    """Everything that a result tells."""
    console.print(f"[bold]{escape(rows.work_text(result))}[/bold]")
    console.print(rows.machine_text(result), rows.versions_text(result), sep="\n", markup=False, highlight=False)
    for found in rows.tables(result):
        print_table(found, console)
    for line in rows.notes(result):
        console.print(line, markup=False, highlight=False)


def print_table(found: rows.Table, console: Console) -> None:
    """One table; numbers at the right."""
    title, heads, lines = found
    table = Table(title=escape(title), title_justify="left")
    for index, (head, numeric) in enumerate(zip(heads, rows.columns(found), strict=True)):
        table.add_column(escape(head), justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)
