"""Plans into place: what is written appears only when it is whole, and plan.json last."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import OutputError
from engine.plan import PlanInfo, info_path, seal

TEMPORARY = ".tmp"


def publish(plan: Path, raw: bytes, info: PlanInfo) -> None:
    """Write a plan, then its plan.json; at no moment is there a plan.json beside bytes it does not describe.

    Raises OutputError.
    """
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        temporary = _written(plan, raw)
        info_path(plan).unlink(missing_ok=True)
        temporary.replace(plan)
        _written(info_path(plan), seal(info)).replace(info_path(plan))
    except OSError as error:
        raise unwritable(plan, error) from error


def publish_info(plan: Path, info: PlanInfo) -> None:
    """Replace the plan.json of a plan that stays. Raises OutputError."""
    try:
        _written(info_path(plan), seal(info)).replace(info_path(plan))
    except OSError as error:
        raise unwritable(plan, error) from error


def sweep(folder: Path) -> None:
    """Remove what killed builds left; only for who holds the lock of the target."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> OutputError:
    """That plans cannot be written here."""
    return OutputError(
        str(path), actual=str(error), allowed="a folder that can be written", remedy="Mend it and build again."
    )


def _written(path: Path, raw: bytes) -> Path:
    """A finished file under a temporary name beside path."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with temporary.open("wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())
    return temporary
