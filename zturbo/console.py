"""How commands talk: results on stdout, progress and remarks on stderr.

`--json` means exactly one JSON object on stdout; nothing else is ever written there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


class Advance(Protocol):
    """What long work calls: the name of its phase, how much is done, how much there is."""

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        """Show that `done` of `total` is done."""


def say(text: str) -> None:
    """One remark for a person, on stderr."""
    typer.echo(text, err=True)


def print_json(value: dict[str, Any]) -> None:
    """The command's one JSON object; ASCII only, so that no terminal's encoding can break it."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """A table on stdout. right: the indices of columns aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a "[" in a cell is no markup
    stdout = Console(width=None if Console().is_terminal else 140)
    stdout.print(table)


@contextmanager
def progress() -> Iterator[Advance]:
    """A progress bar on stderr; where stderr is no terminal, one line whenever a new phase begins."""
    stderr = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=None)
        told = ""

        def advance(phase: str, done: int, total: int, /) -> None:
            nonlocal told
            bar.update(task, description=phase, completed=done, total=total)
            if bar.disable and phase != told:
                say(f"{phase} ({done}/{total})")
            told = phase

        yield advance


def bytes_text(size_bytes: int) -> str:
    """A size for people: `532 B`, `18.2 MB`."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
