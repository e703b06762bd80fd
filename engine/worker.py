"""One build in its own process: `python -m engine.worker`, a job on stdin, a reply on stdout.

A build can crash, hang or eat memory; here it takes only itself down (engine/child.py: and never outlives its parent).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from engine.bundle import verified_file
from engine.child import serve
from engine.compile import Compiled, Source, plan_from_onnx
from engine.dialect import load_dialect
from engine.errors import BuildFailed, BundleDamaged, ZturboError
from engine.job import Job, Reply, failed
from engine.plan import VERSION, PlanInfo
from engine.publish import TEMPORARY, publish
from engine.schema import FileEntry
from engine.timing import TimingCache
from engine.verdict import NOT_YET

STATUS = Path("/proc/self/status")


def build_plan(job: Job) -> PlanInfo:
    """Build a plan and put it and its plan.json in place.

    Raises BackendUnavailable, BundleDamaged, BuildFailed, ExtraMissing or OutputError.
    """
    begun = time.monotonic()
    dialect = load_dialect(job.identity.flavour)
    for name, entry in job.files.items():
        verified_file(Path(job.folder), name, entry)
    path, plan = Path(job.folder) / job.graph.file, Path(job.plan)
    source = Source(
        read=lambda: _read(path, job.files[job.graph.file]), path=path, graph=job.graph, identity=job.identity,
        weights=plan.with_name(f"{plan.name}.weights.{os.getpid()}{TEMPORARY}"),
    )  # fmt: skip
    timing = TimingCache(None if job.timing_cache is None else Path(job.timing_cache))
    compiled = plan_from_onnx(dialect, source, job.options, timing)
    info = _info(job, compiled, time.monotonic() - begun)
    publish(plan, compiled.plan, info)
    return info


def _read(path: Path, entry: FileEntry) -> bytes:
    """The ONNX file's bytes, which are those that were verified."""
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != entry.sha256:
        raise BundleDamaged(
            str(path), actual="a file that changes while it is read", allowed="the file that export wrote",
            remedy="Build when no export runs.",
        )  # fmt: skip
    return raw


def _info(job: Job, compiled: Compiled, seconds: float) -> PlanInfo:
    entry = FileEntry(size_bytes=len(compiled.plan), sha256=hashlib.sha256(compiled.plan).hexdigest())
    return PlanInfo(
        version_of_schema=VERSION, sha256="", identity=job.identity, plan=entry, options=job.options,
        wires=compiled.wires, mode=compiled.mode.name, machine=job.machine, warnings=compiled.warnings,
        seconds=round(seconds, 3),
        facts=msgspec.structs.replace(compiled.facts, peak_host_bytes=peak_host_bytes()), verdict=NOT_YET,
    )  # fmt: skip


def peak_host_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not tell (all but Linux).

    Not what getrusage says: that outlives an exec, so it is the parent's where that was larger when it forked.
    """
    with contextlib.suppress(OSError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM" and (size := value.split()[:1]) and size[0].isdecimal():
                return int(size[0]) * 1024
    return None


def answer(job: Job) -> Reply:
    """Build; the info, or what was raised."""
    try:
        return Reply(info=build_plan(job))
    except ZturboError as error:
        return failed(error)
    except MemoryError as error:
        actual, remedy = f"out of memory ({error})", "Try fewer jobs at once, or a smaller profile."
        return failed(BuildFailed(f"graph {job.identity.name!r}", actual=actual, allowed="a plan", remedy=remedy))


if __name__ == "__main__":
    serve(Job, answer)
