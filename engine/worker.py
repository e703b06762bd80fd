"""One build in its own process: `python -m engine.worker`, a job on stdin, a reply on stdout.

A build can crash, hang or eat memory; here it takes only itself down. It ends when its parent does: the parent holds
stdin open, and its end is the signal.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from engine.bundle import FileEntry, file_sha256
from engine.compile import Compiled, plan_from_onnx
from engine.dialect import load_dialect
from engine.errors import BundleDamaged, ZturboError
from engine.job import Job, Reply, failed
from engine.plan import VERSION, PlanInfo
from engine.publish import publish

UNVERIFIED = "unverified"


def build_plan(job: Job) -> PlanInfo:
    """Build a plan and put it and its plan.json in place.

    Raises BackendUnavailable, BundleDamaged, BuildFailed or OutputError.
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
    """The ONNX file's bytes, read once; their hash and those of its external data are the bundle's."""
    folder = Path(job.folder)
    raw = (folder / job.graph.file).read_bytes()
    for name, entry in job.files.items():
        digest = hashlib.sha256(raw).hexdigest() if name == job.graph.file else file_sha256(folder / name)
        if digest != entry.sha256:
            raise BundleDamaged(
                str(folder / name), actual=f"sha256 {digest[:12]}…", allowed=f"{entry.sha256[:12]}…",
                remedy=f"Run `zturbo export` again for '{folder.name}'.",
            )  # fmt: skip
    return raw


def _info(job: Job, compiled: Compiled, seconds: float) -> PlanInfo:
    entry = FileEntry(size_bytes=len(compiled.plan), sha256=hashlib.sha256(compiled.plan).hexdigest())
    return PlanInfo(
        version_of_schema=VERSION, sha256="", identity=job.identity, plan=entry, mode=compiled.mode.name,
        machine=job.machine, warnings=compiled.warnings, seconds=round(seconds, 3), verified=UNVERIFIED,
    )  # fmt: skip


def main() -> None:
    """Read a job, build it, reply. Whatever a library prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        try:
            reply = Reply(info=build_plan(job))
        except ZturboError as error:
            reply = failed(error)
        channel.write(msgspec.json.encode(reply))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
