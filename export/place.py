"""Writing a folder so that nobody ever sees half of it: built beside its place, then moved there at once."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from engine.errors import OutputError

KEPT = "engines"
"""What later stages put into a bundle; it moves along, and each plan's own check says whether it still fits."""


@contextlib.contextmanager
def placed_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well it takes target's place, else it is removed.

    One writer at a time: a second one waits. Raises OutputError where target's parent cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise FileExistsError(17, "a regular file is there")
        with FileLock(target.parent / f".{target.name}.lock"):
            _recover(target)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
            staging.chmod(0o755)
            try:
                yield staging
                _swap(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            str(target), actual=f"{type(error).__name__}: {error.strerror or error}",
            allowed="a folder that can be written", remedy="Choose another place with --out.",
        ) from error  # fmt: skip


def _swap(staging: Path, target: Path) -> None:
    old = _old(target)
    if target.exists():
        target.rename(old)
        if (old / KEPT).is_dir():
            (old / KEPT).rename(staging / KEPT)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undo a swap that was killed between its renames."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    for stale in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.old"
