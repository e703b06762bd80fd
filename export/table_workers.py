"""Schedulers probed in processes side by side, which leave what they find in the cache of tables.

    python -m export.table_workers    a job as JSON on stdin: {config, names, etas, cache}

A process that dies costs time alone: whoever needs its tables finds none in the cache and probes them itself. Torch
computes tensors of a few numbers here, on one thread: processes are the only way to use a second core.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import SchedulerUnsupported
from export import table_cache
from export.scheduler import make_scheduler
from export.tabled import asked_etas, tabled

WORTH_IT = 12
"""A process spends about 4 s on importing torch and diffusers; so many schedulers take longer."""
MOST = 8


def probe_side_by_side(config: Mapping[str, Any], names: Sequence[str], etas: Sequence[float], cache: Path) -> None:
    """Put the tables of these schedulers into the cache, where they are many and there is more than one core."""
    missing = list(_missing(config, names, etas, cache))
    workers = min(os.cpu_count() or 1, MOST, len(missing) // (WORTH_IT // 2))
    if workers < 2:
        return
    jobs = [{"config": dict(config), "names": missing[k::workers], "etas": list(etas), "cache": str(cache)}
            for k in range(workers)]  # fmt: skip
    running = [process for job in jobs[1:] if (process := _start(job))]
    try:
        work(jobs[0])
        for process in running:
            process.wait()
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def work(job: Mapping[str, Any]) -> None:
    """Probe each scheduler of a job; whoever asks for one that is refused hears the reason then."""
    for name in job["names"]:
        with contextlib.suppress(SchedulerUnsupported):
            tabled(name, job["config"], job["etas"], Path(job["cache"]))


def _missing(config: Mapping[str, Any], names: Sequence[str], etas: Sequence[float], cache: Path) -> Iterator[str]:
    """Those whose tables are not in the cache; of names with the same tables, the first."""
    seen = set[str]()
    for name in names:
        with contextlib.suppress(SchedulerUnsupported):
            entry = table_cache.entry_name(make_scheduler(name, config), asked_etas(name, config, etas))
            if entry not in seen and not (cache / entry).exists():
                yield name
            seen.add(entry)


def _start(job: Mapping[str, Any]) -> subprocess.Popen[bytes] | None:
    """None where the system starts no more processes."""
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "export.table_workers"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    except OSError:
        return None
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as stream:  # it died at once: its share is probed here
        stream.write(json.dumps(job, default=str).encode())
    return process


if __name__ == "__main__":
    work(json.load(sys.stdin))
