"""Before the first build starts: whether memory and disk are enough, and for how many builds side by side.

Knows what the builds need by engine/estimate.py and what there is by being told; starts nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from engine.errors import BuildFailed
from engine.estimate import gpu_bytes, host_bytes, most_weights_bytes, plan_bytes, rates, temporary_bytes
from engine.job import Job
from engine.machine import free_memory
from engine.site import Site

_PARTS = "Build in more parts (`--parts`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is free, in bytes; None where it is unknown or does not matter."""

    host: int | None
    gpu: int | None
    disk: int | None


@dataclass(frozen=True, slots=True)
class Cleared:
    """How many builds may run side by side, and what a user should know of it."""

    jobs: int
    remarks: tuple[str, ...]


def resources_of(site: Site, target_folder: Path) -> Resources:
    """What is free here."""
    existing = next(folder for folder in (target_folder, *target_folder.parents) if folder.exists())
    return Resources(host=free_memory(), gpu=site.gpu_memory_bytes, disk=shutil.disk_usage(existing).free)


def preflight(jobs: Sequence[Job], side_by_side: int, site: Site, free: Resources) -> Cleared:
    """How many of the jobs may run side by side, at most side_by_side.

    Raises BuildFailed where the disk is too small for all plans, or memory for any one build.
    """
    temporary = sorted(map(temporary_bytes, jobs), reverse=True)[:side_by_side]
    disk = sum(map(plan_bytes, jobs)) + sum(temporary)
    if free.disk is not None and disk > free.disk:
        subject = f"{len(jobs)} plans, largest {_largest(jobs, plan_bytes).identity.name!r}"
        raise _short(subject, "disk", disk, free.disk, "Free space, or build fewer profiles at once.")
    remarks, count = list[str](), min(side_by_side, len(jobs))
    if free.host is None:
        remarks.append("host memory is not looked at: psutil is not installed")

    def host(job: Job) -> int:
        return host_bytes(rates(site.dialect, job.identity.precision), most_weights_bytes(job))

    for name, available, need in (("host memory", free.host, host), ("GPU memory", free.gpu, gpu_bytes)):
        if available is None:
            continue
        fitting = _fitting(jobs, need, available)
        if fitting == 0:
            largest = _largest(jobs, need)
            remedy = f"{_PARTS}, or a smaller profile, or where more is free."
            raise _short(_subject(largest), name, need(largest), available, remedy)
        if fitting < count:
            most = gib(need(_largest(jobs, need)))
            remarks.append(f"{fitting} builds side by side, not {count}: one needs up to {most} of {name}, "
                           f"{gib(available)} are free")  # fmt: skip
            count = fitting
    return Cleared(count, tuple(remarks))


def gib(size_bytes: int) -> str:
    """A size as memory is sold: `4.1 GiB`, `96 MiB`."""
    mib = size_bytes / (1 << 20)
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB" if mib >= 1 else f"{size_bytes} bytes"


def _fitting(jobs: Sequence[Job], need: Callable[[Job], int], available: int) -> int:
    """How many of the most demanding jobs fit at once."""
    needs = sorted((need(job) for job in jobs), reverse=True)
    return sum(total <= available for total in accumulate(needs))


def _largest(jobs: Sequence[Job], need: Callable[[Job], int]) -> Job:
    return max(jobs, key=need)


def _subject(job: Job) -> str:
    return f"graph {job.identity.name!r}, profile {' + '.join(job.identity.profiles)}"


def _short(subject: str, what: str, predicted: int, available: int, remedy: str) -> BuildFailed:
    return BuildFailed(
        subject, actual=f"{gib(predicted)} of {what} predicted", allowed=f"the {gib(available)} that are free",
        remedy=remedy,
    )  # fmt: skip
