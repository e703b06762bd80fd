"""Jobs in processes of their own, a few side by side; none outlives the call."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from engine.errors import BuildFailed, ZturboError
from engine.job import Job, Reply
from engine.plan import PlanInfo

_POLL_S = 0.02
_TAIL_BYTES = 2000
_KILLED = (-9, 137)
"""What SIGKILL leaves, as Python and as a shell tell it: Linux kills so whoever eats its memory."""


class _Running:
    """One worker process on one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.stdout: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.worker"], stdin=subprocess.PIPE, stdout=self.stdout, stderr=self.stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; `result` says how
            self.process.stdin.write(msgspec.json.encode(job) + b"\n")
            self.process.stdin.flush()

    def result(self) -> PlanInfo:
        """What the finished process replied. Raises what it raised, or BuildFailed where it did not end well."""
        self.stdout.seek(0)
        try:
            reply = msgspec.json.decode(self.stdout.read(), type=Reply)
        except msgspec.DecodeError as error:
            raise self._died("a process") from error
        if reply.failure is None and self.process.returncode != 0:
            raise self._died("a plan, then a process")
        return reply.result()

    def _died(self, what: str) -> BuildFailed:
        code = self.process.returncode
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - _TAIL_BYTES))
        tail = self.stderr.read().decode(errors="replace").strip() or "nothing on stderr"
        remedy = "Report it with these lines where a second build does not help."
        if code in _KILLED:
            remedy = "Out of memory ends a build like this: try fewer jobs at once."
        return BuildFailed(
            f"graph {self.job.graph.name!r}, profile {self.job.identity.profile}",
            actual=f"{what} that ended with {code}: {tail}", allowed="a plan and an end with 0", remedy=remedy,
        )  # fmt: skip

    def close(self) -> None:
        """End the process where it still runs, and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def run_jobs(jobs: Sequence[Job], side_by_side: int, on_start: Callable[[Job], None]) -> Iterator[tuple[Job, PlanInfo]]:
    """Build every job, yielding each as it finishes.

    After a failure nothing new starts; what runs may finish, then the failures are raised as one. Leaving the
    iteration early, by an interrupt too, kills what runs.
    """
    pending, running, failures = list(jobs), list[_Running](), list[ZturboError]()
    try:
        while running or (pending and not failures):
            while pending and not failures and len(running) < side_by_side:
                running.append(_Running(pending.pop(0)))
                on_start(running[-1].job)
            finished = [worker for worker in running if worker.process.poll() is not None]
            if not finished:
                time.sleep(_POLL_S)
            for worker in finished:
                running.remove(worker)
                try:
                    yield worker.job, worker.result()
                except ZturboError as error:
                    failures.append(error)
                finally:
                    worker.close()
        if failures:
            raise _one(failures)
    finally:
        for worker in running:
            worker.close()


def _one(failures: Sequence[ZturboError]) -> ZturboError:
    """The first failure, and in its words what else failed."""
    first, *others = failures
    if not others:
        return first
    actual = "; ".join([first.actual, *(f"and {error.subject}: {error.actual}" for error in others)])
    return type(first)(first.subject, actual=actual, allowed=first.allowed, remedy=first.remedy)
