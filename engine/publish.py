"""Plans into place: what is written appears only when it is whole, and plan.json last."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import OutputError
from engine.plan import PlanInfo, info_path, seal

TEMPORARY = ".tmp"


def publish(plan: Path, raw: bytes | memoryview, info: PlanInfo) -> None:
    """Write a plan, then its plan.json; at no moment is there a plan.json beside bytes it does not describe.

    Raises OutputError.
    """
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        with _written(plan, raw) as temporary:
            info_path(plan).unlink(missing_ok=True)
            temporary.replace(plan)
        _replace(info_path(plan), seal(info))
    except OSError as error:
        raise unwritable(plan, error) from error


def publish_info(plan: Path, info: PlanInfo) -> None:
    """Replace the plan.json of a plan that stays. Raises OutputError."""
    try:
        _replace(info_path(plan), seal(info))
    except OSError as error:
        raise unwritable(plan, error) from error


def set_aside(plan: Path, info: PlanInfo) -> Path:
    """Take a rejected plan out of sight: it becomes `<plan>.rejected`, with the report beside it, which is returned.

    Raises OutputError.
    """
    report = rejected_info_path(plan)
    try:
        info_path(plan).unlink(missing_ok=True)
        _replace(report, seal(info))
        plan.replace(rejected_path(plan))
    except OSError as error:
        raise unwritable(plan, error) from error
    return report


def remove(plan: Path) -> None:
    """Remove a plan that another replaces, and what was set aside of it; plan.json goes first. Raises OutputError."""
    try:
        for path in (info_path(plan), plan):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(plan, error) from error
    forget_rejected(plan)


def forget_rejected(plan: Path) -> None:
    """Remove a rejected plan that has a better successor, and its report. Raises OutputError."""
    try:
        for path in (rejected_info_path(plan), rejected_path(plan)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(plan, error) from error


def rejected_path(plan: Path) -> Path:
    """Where a plan is kept that the parity gate rejected."""
    return plan.with_name(f"{plan.name}.rejected")


def rejected_info_path(plan: Path) -> Path:
    """The report on a rejected plan: its plan.json with the verdict."""
    return plan.with_name(f"{plan.name}.rejected.json")


def sweep(folder: Path) -> None:
    """Remove what killed builds left; only for who holds the lock of the target. What cannot be removed stays."""
    for path in folder.glob(f"*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> OutputError:
    """That plans cannot be written here."""
    allowed, remedy = "a folder that can be written", "Mend it and build again."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        allowed, remedy = "room for a plan", "Free space and build again: the plans that are finished stay."
    return OutputError(str(path), actual=str(error), allowed=allowed, remedy=remedy)


def _replace(path: Path, raw: bytes) -> None:
    """Put a file in another's place at once."""
    with _written(path, raw) as temporary:
        temporary.replace(path)


@contextlib.contextmanager
def _written(path: Path, raw: bytes | memoryview) -> Iterator[Path]:
    """A finished file under a temporary name beside path; it goes where it is not taken."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
