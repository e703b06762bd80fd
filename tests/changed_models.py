"""Copies of model folders with one thing changed, and the check that exporting such a folder is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SourceError
from export.bundle import export_bundle
from tests.conftest import CACHE
from tests.tiny_families import unet

Change = Callable[[Path], object]


def edit(name: str, **values: Any) -> Change:
    """Other values in one of a model's JSON files."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def saved(part: str, make: Callable[[], Any]) -> Change:
    """Another component in place of the model's own."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / part)
        make().save_pretrained(folder / part)

    return change


def made(**changes: Any) -> Change:
    return saved("unet", lambda: unet(**changes))


def without(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def renamed(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def also(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def refused(folder: Path, actual: str, allowed: str = ".") -> SourceError:
    """Exporting it is refused with these words and leaves nothing, and the message says what helps."""
    out = folder.parent / "out"
    with pytest.raises(SourceError) as caught:
        export_bundle(folder, out, precisions=["fp32"], schedulers=["euler"], cache=CACHE / "tables")
    error = caught.value
    assert re.search(actual, error.actual), error
    assert re.search(allowed, error.allowed), error
    assert len(error.remedy) > 10
    assert not out.exists()
    return error
