"""Builds and the parity gate in processes of their own, a few side by side; none outlives the call."""

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
from engine.job import Broken, Failure, GateJob, GateReply, Job, Reply
from engine.plan import PlanInfo

TICK_S = 1.0
GATE_LIMIT_S = 900.0
"""A gate takes seconds, with the largest plans a minute or two."""
WORKER, GATE_WORKER = "engine.worker", "engine.gate_worker"
_POLL_S = 0.02
_TAIL_BYTES = 2000
_KILLED = (-9, 137)
"""What SIGKILL leaves, as Python and as a shell tell it: Linux kills so whoever eats its memory."""
_CRASHED = (4, 5, 6, 7, 8, 11)
"""The signals that a process gets for what it does itself: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV."""
_WINDOWS_CRASHED = 0xC0000000
"""From here on a code is an exception that Windows ended a process for."""


class _Process:
    """A module of engine/ as a process, which is told a struct on stdin and replies on stdout.

    It ends when stdin does, so with this process at the latest.
    """

    def __init__(self, module: str, message: msgspec.Struct) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self.stdout: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=self.stdout, stderr=self.stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died at once; its end says how
            self.process.stdin.write(msgspec.json.encode(message) + b"\n")
            self.process.stdin.flush()

    def replied(self) -> bytes:
        """All that the finished process wrote to stdout."""
        self.stdout.seek(0)
        return self.stdout.read()

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - _TAIL_BYTES))
        return self.stderr.read().decode(errors="replace").strip() or "nothing on stderr"

    def close(self) -> None:
        """End the process where it still runs, and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


class _Running(_Process):
    """One worker process on one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(WORKER, job)

    def result(self) -> PlanInfo:
        """What the finished process replied. Raises what it raised, or BuildFailed where it did not end well."""
        try:
            reply = msgspec.json.decode(self.replied(), type=Reply)
        except msgspec.DecodeError as error:
            raise self._died("a process") from error
        if reply.failure is None and self.process.returncode != 0:
            raise self._died("a plan, then a process")
        return reply.result()

    def _died(self, what: str) -> BuildFailed:
        code, identity = self.process.returncode, self.job.identity
        remedy = "Report it with these lines where a second build does not help."
        if code in _KILLED:
            remedy = "Out of memory ends a build like this: try fewer jobs at once, or more parts."
        return BuildFailed(
            f"graph {identity.name!r}, profile {' + '.join(identity.profiles)}",
            actual=f"{what} that ended with {code}: {self.last_words()}", allowed="a plan and an end with 0",
            remedy=remedy,
        )  # fmt: skip


def run_jobs(
    jobs: Sequence[Job], side_by_side: int, on_start: Callable[[Job], None], on_tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[Job, PlanInfo]]:
    """Build every job, yielding each as it finishes.

    on_tick: called about once a second while builds run. After a failure nothing new starts; what runs may finish, then
    the failures are raised as one. Leaving the iteration early, by an interrupt or by what a callback raises, kills
    what runs.
    """
    pending, running, failures = list(jobs), list[_Running](), list[ZturboError]()
    tick = _Ticks(on_tick)
    try:
        while running or (pending and not failures):
            while pending and not failures and len(running) < side_by_side:
                running.append(_Running(pending.pop(0)))
                on_start(running[-1].job)
            finished = [worker for worker in running if worker.process.poll() is not None]
            if not finished:
                tick.wait()
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


def run_gate(job: GateJob, on_tick: Callable[[], None] = lambda: None) -> GateReply:
    """Compare the plans of a set with the reference. A gate that dies is a reply too: why it could not run."""
    process, tick, end = _Process(GATE_WORKER, job), _Ticks(on_tick), time.monotonic() + GATE_LIMIT_S
    try:
        while process.process.poll() is None:
            if time.monotonic() >= end:
                return _gate_failed(f"a process that did not end in {GATE_LIMIT_S:.0f} s", "hang")
            tick.wait()
        try:
            reply = msgspec.json.decode(process.replied(), type=GateReply)
        except msgspec.DecodeError:
            return _gate_died(process)
        return _gate_died(process) if process.process.returncode != 0 else reply
    finally:
        process.close()


def _gate_died(process: _Process) -> GateReply:
    code = process.process.returncode
    crashed = -code in _CRASHED or code - 128 in _CRASHED or code >= _WINDOWS_CRASHED
    return _gate_failed(f"a process that ended with {code}: {process.last_words()}", "crash" if crashed else None)


def _gate_failed(actual: str, broken: Broken | None) -> GateReply:
    failure = Failure("ExecutionFailed", "the parity gate", actual, "verdicts", "Build again.")
    return GateReply(failure=failure, broken=broken)


class _Ticks:
    """Short sleeps, and a call about once a second."""

    def __init__(self, on_tick: Callable[[], None]) -> None:
        self._on_tick, self._next = on_tick, time.monotonic() + TICK_S

    def wait(self) -> None:
        """Sleep a moment; the call where it is due."""
        time.sleep(_POLL_S)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TICK_S
            self._on_tick()


def _one(failures: Sequence[ZturboError]) -> ZturboError:
    """The first failure, and in its words what else failed."""
    first, *others = failures
    if not others:
        return first
    actual = "; ".join([first.actual, *(f"and {error.subject}: {error.actual}" for error in others)])
    return type(first)(first.subject, actual=actual, allowed=first.allowed, remedy=first.remedy)
