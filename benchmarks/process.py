"""A contender in a process of its own, so that one's idle threads and memory are not the other's.

Knows no contender: it is made in the child from `module:class`, so the parent imports neither torch nor a backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from benchmarks.work import Contender, Settings, Turn, Work
from engine.errors import ExecutionFailed, ZturboError


class ContenderProcess:
    """One contender, asked by pipe; use `with`. environment: variables to start it with, None to unset one."""

    def __init__(self, factory: str, work: Work, environment: Mapping[str, str | None]) -> None:
        self.factory, self.environment = factory, dict(environment)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, factory, work), daemon=True)
        with _environment(environment):
            self._child.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid or 0

    def configure(self, settings: Settings) -> None:
        """Have the contender take settings. Raises what it raises."""
        self._ask("configure", dict(settings))

    def paint(self) -> Turn:
        """One turn. Raises what the contender raises."""
        turn: Turn = self._ask("paint", None)
        return turn

    def _ask(self, what: str, argument: object) -> Any:
        try:
            self._pipe.send((what, argument))
            ok, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._child.join(5)
            raise _failed(self.factory, f"its process ended with code {self._child.exitcode}") from error
        if ok:
            return answer
        raise answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._child.join(10)
        if self._child.is_alive():
            self._child.kill()
            self._child.join()

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Any, factory: str, work: Work) -> None:
    """The child: make the contender, then answer until the pipe closes. Errors travel as their four parts."""
    contender: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            what, argument = pipe.recv()
            try:
                if contender is None:
                    contender = _make(factory, work)
                pipe.send((True, _answer(contender, what, argument)))
            except ZturboError as error:
                pipe.send((False, error))
            except Exception as error:  # noqa: BLE001 - whatever a contender raises is the parent's to report
                pipe.send((False, _failed(factory, f"{type(error).__name__}: {error}")))


def _make(factory: str, work: Work) -> Contender:
    module, _, name = factory.partition(":")
    contender: Contender = getattr(importlib.import_module(module), name)(work)
    return contender


def _answer(contender: Contender, what: str, argument: Settings) -> Turn | None:
    if what == "configure":
        contender.configure(argument)
        return None
    return dataclasses.replace(contender.paint(), peak_bytes=peak_bytes())


def peak_bytes() -> int:
    """The largest resident memory that this process had, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """os.environ with changes; a spawned child takes it as it is when it starts."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _failed(factory: str, actual: str) -> ExecutionFailed:
    return ExecutionFailed(
        f"benchmark, contender {factory}", actual=actual, allowed="a picture per turn",
        remedy="Install the extras: pip install 'zturbo[export,cpu,bench]'.",
    )  # fmt: skip
