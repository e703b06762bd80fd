"""One build in its own process: `python -m engine.worker`, a job on stdin, a reply on stdout.

A build can crash, hang or eat memory; here it takes only itself down. It ends when its parent does: the parent holds
stdin open, and its end is the signal. A process that replied ends with 0, whatever the reply.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from engine.bundle import FileEntry, verified_file
from engine.compile import Compiled, plan_from_onnx
from engine.dialect import load_dialect
from engine.errors import BuildFailed, BundleDamaged, ZturboError
from engine.job import Job, Reply, failed
from engine.plan import VERSION, PlanInfo
from engine.publish import publish


def build_plan(job: Job) -> PlanInfo:
    """Build a plan and put it and its plan.json in place.

    Raises BackendUnavailable, BundleDamaged, BuildFailed, ExtraMissing or OutputError.
    """
    begun = time.monotonic()
    dialect = load_dialect(job.identity.flavour)
    raw = _verified_graph(job)
    path = Path(job.folder) / job.graph.file
    capabilities = job.identity.capabilities if dialect.flavour.portable else ()
    compiled = plan_from_onnx(dialect, raw, path, job.graph, job.identity.shapes, capabilities)
    info = _info(job, compiled, time.monotonic() - begun)
    publish(Path(job.plan), compiled.plan, info)
    return info


def _verified_graph(job: Job) -> bytes:
    """The ONNX file's bytes; their hash and those of its external data are the bundle's."""
    folder, file = Path(job.folder), job.graph.file
    for name in job.files:
        verified_file(folder, name, job.files[name])
    raw = (folder / file).read_bytes()
    if hashlib.sha256(raw).hexdigest() != job.files[file].sha256:
        raise BundleDamaged(
            str(folder / file), actual="a file that changes while it is read", allowed="the file that export wrote",
            remedy="Build when no export runs.",
        )  # fmt: skip
    return raw


def _info(job: Job, compiled: Compiled, seconds: float) -> PlanInfo:
    entry = FileEntry(size_bytes=len(compiled.plan), sha256=hashlib.sha256(compiled.plan).hexdigest())
    return PlanInfo(
        version_of_schema=VERSION, sha256="", identity=job.identity, plan=entry, mode=compiled.mode.name,
        machine=job.machine, warnings=compiled.warnings, seconds=round(seconds, 3), verified="",
    )  # fmt: skip


def main() -> None:
    """Read a job, build it, reply. Whatever a library prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        channel.write(msgspec.json.encode(_reply(job)))


def _reply(job: Job) -> Reply:
    try:
        return Reply(info=build_plan(job))
    except ZturboError as error:
        return failed(error)
    except MemoryError as error:
        actual, remedy = f"out of memory ({error})", "Try fewer jobs at once, or a smaller profile."
        return failed(BuildFailed(f"graph {job.graph.name!r}", actual=actual, allowed="a plan", remedy=remedy))


def _end_with_parent() -> None:
    """Reads the descriptor, not sys.stdin: who waits in that holds a lock that the interpreter needs to end."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
