"""A folder that is made once and kept: whole or not there, by one process at a time, found again by its name.

Does not know what is in it. For bundles, which replace one another, see place.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from engine.errors import OutputError
from export.source import INDEX

SOURCES = ".sources"
"""Beside the bundles: models that were made or converted on the way to one. Anything there may be deleted."""


def kept_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder; made by `write` where it is not there yet, which gets an empty one beside it. A second caller waits.

    Raises OutputError where it cannot be written, and what `write` raises; then nothing is left.
    """
    if (folder / INDEX).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not (folder / INDEX).is_file():
                _place(folder, write)
    except OSError as error:
        raise OutputError(
            str(folder), actual=f"{type(error).__name__}: {error.strerror or error}", allowed="a folder to write to",
            remedy="Free some space, or choose another place with --out: models that are made lie beside the bundle.",
        ) from error  # fmt: skip
    return folder


def _place(folder: Path, write: Callable[[Path], None]) -> None:
    """Write beside and move. Whoever holds the lock is alone: what others left half done is removed."""
    for stale in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        staging.chmod(0o777 & ~_umask())
        write(staging)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    """What the process takes away from new files; mkdtemp takes all but the owner's."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
