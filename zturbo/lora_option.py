"""`--lora FILE[:WEIGHT]`, an option of `export` and `generate`: how its text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Loras = Annotated[list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="A LoRA; may be repeated.")]


def read_loras(texts: Sequence[str] | None) -> list[tuple[Path, float]]:
    """Files and weights; 1 where a text names none. What is no number behind a colon is of the file's name."""
    return [_read(text) for text in texts or ()]


def _read(text: str) -> tuple[Path, float]:
    file, colon, weight = text.rpartition(":")
    try:
        return (Path(file), float(weight)) if colon and file else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0
