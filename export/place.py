"""Writing a folder so that nobody ever sees half of it: built beside its place, then moved there at once.

Only a bundle is ever replaced; any other folder or file in the way is left alone and is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from engine.bundle import FILE
from engine.errors import OutputError

KEPT = "engines"
"""What later stages put into a bundle; it moves along, and each plan's own check says whether it still fits."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def placed_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well it takes target's place, else target stays as it was.

    Raises OutputError where target is no bundle, is being written by another process, or cannot be written.
    """
    with _translated(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(target, target.parent / f".{target.name}.lock", "another export of this bundle runs")
    staging = _partial(target, os.getpid())
    try:
        with _translated(target):
            _recover(target)
            _refuse_what_is_no_bundle(target)
            staging.mkdir()
        with _translated(target, staging):
            yield staging
        with _translated(target):
            _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


def _refuse_what_is_no_bundle(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise _unwritable(target, "a file that is in the way")
    if any(target.iterdir()) and not (target / FILE).is_file():
        raise _unwritable(target, f"a folder with other contents and no {FILE}")


def _swap(staging: Path, target: Path) -> None:
    """Move staging to target. At every moment either the old bundle or the new one is there or in `_old`."""
    old = _old(target)
    if target.exists():
        for lock in target.glob(f"{KEPT}/*/.lock"):  # freed again at once: Windows moves no folder with an open file
            _locked(target, lock, "a build of this bundle's plans runs").release()
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _finish(target)


def _recover(target: Path) -> None:
    """Undo or finish a swap that was killed, and remove what killed exports left."""
    if _old(target).exists():
        if target.exists():
            _finish(target)
        else:
            _old(target).rename(target)
    for stale in target.parent.glob(_partial(target, "*").name):
        shutil.rmtree(stale, ignore_errors=True)


def _finish(target: Path) -> None:
    """What is left to do once the new bundle is in its place: its plans follow, the old bundle goes."""
    old = _old(target)
    if (old / KEPT).is_dir() and not (target / KEPT).exists():
        (old / KEPT).rename(target / KEPT)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _partial(target: Path, owner: int | str) -> Path:
    return target.parent / f".{target.name}.partial-{owner}"


def _locked(target: Path, path: Path, holder: str) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _unwritable(target, holder, "Wait for it, or end it.") from error
    return lock


@contextlib.contextmanager
def _translated(target: Path, within: Path | None = None) -> Iterator[None]:
    """OSErrors as OutputError; of a caller's block only those of files in `within`, and of a full or read-only disk."""
    try:
        yield
    except OSError as error:
        inside = within is None or str(error.filename).startswith(str(within)) or error.errno in FULL
        if not inside:
            raise
        raise _unwritable(target, f"{type(error).__name__}: {error.strerror or error}") from error


def _unwritable(target: Path, actual: str, remedy: str = "Choose another place with --out.") -> OutputError:
    return OutputError(
        str(target), actual=actual, allowed="a new or empty folder, or a bundle to replace", remedy=remedy
    )
