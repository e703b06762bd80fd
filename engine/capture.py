"""Launches captured as CUDA graphs and replayed: what a step costs the host is then one call.

Knows neither what is launched nor when; a capture that fails leaves the launches as they are.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from engine.arena import Arena
from engine.cuda import frees_wait, run_all
from engine.device import Device
from engine.errors import ExecutionFailed

_LOGGER = logging.getLogger("zturbo.capture")
NOT_ASKED = "capture was not asked for"
NOT_YET = "nothing ran twice yet"


class Captures:
    """The captures of one device's stream. arena: the scratch that the launches use.

    asked: False for plain launches throughout.
    """

    def __init__(self, device: Device, arena: Arena, *, asked: bool = True) -> None:
        self.arena, self._device, self._asked = arena, device, asked
        self._executables: dict[int, Any] = {}
        self._keys = itertools.count()
        self._reason: str | None = None

    @property
    def captured(self) -> int:
        """How many launches are replayed from a capture now."""
        return len(self._executables)

    @property
    def reason(self) -> str | None:
        """Why launches are plain, or None where those that ran twice are captured."""
        if not self._asked:
            return NOT_ASKED
        return self._reason if self._reason is not None or self._executables else NOT_YET

    def of(self, launches: Sequence[Callable[[], None]]) -> Captured:
        """One launch of these in order."""
        return Captured(self, launches, plain=not self._asked)

    def close(self) -> None:
        """Wait for the stream, then destroy every capture. Raises the first ExecutionFailed, once all are."""
        run_all([self._device.synchronize, *(partial(self.destroy, key) for key in list(self._executables))])

    def capture(self, launches: Sequence[Callable[[], None]]) -> int | None:
        """Capture what the launches do, without running it; its key for `replay`, or None where that failed."""
        self._device.use()
        key = next(self._keys)
        with frees_wait():
            try:
                self._executables[key] = self._executable(launches)
            except ExecutionFailed as error:
                self._abandon()
                self._tell(f"{error.subject}: {error.actual}")
                return None
            except BaseException:  # an interrupt: the stream must not stay in capture
                self._abandon()
                raise
        return key

    def replay(self, key: int) -> None:
        """Launch a capture. Raises ExecutionFailed."""
        self._device.use()
        self._device.cuda.call("cudaGraphLaunch", self._executables[key], self._device.stream)

    def destroy(self, key: int) -> None:
        """Forget a capture; nothing where close() was first."""
        executable = self._executables.pop(key, None)
        if executable is not None:
            self._device.cuda.free("cudaGraphExecDestroy", executable)

    def _executable(self, launches: Sequence[Callable[[], None]]) -> Any:
        """By cudaGraphInstantiateWithFlags, which takes the same arguments in every CUDA (the plain one: not)."""
        cuda, stream = self._device.cuda, self._device.stream
        cuda.call("cudaStreamBeginCapture", stream, cuda.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        for launch in launches:
            launch()
        graph = cuda.call("cudaStreamEndCapture", stream)
        try:
            return cuda.call("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            cuda.rt.cudaGraphDestroy(graph)

    def _abandon(self) -> None:
        """Take the stream out of capture, wherever it went wrong, and clear what CUDA says of it."""
        rt = self._device.cuda.rt
        code, graph = rt.cudaStreamEndCapture(self._device.stream)
        if int(code) == 0 and graph is not None:
            rt.cudaGraphDestroy(graph)
        self._device.cuda.forget_error()

    def _tell(self, reason: str) -> None:
        """Log a reason once."""
        if self._reason is None:
            _LOGGER.warning("a capture failed, so launches stay plain: %s", reason)
        self._reason = reason


class Captured:
    """One launch of several in order: plain at first, captured at the second call, replayed from then on.

    The first stays plain because TensorRT does after a change of shapes what cannot be captured. After a move of the
    scratch it begins anew. Where a capture fails it stays plain.
    """

    __slots__ = ("__weakref__", "_destroy", "_generation", "_key", "_launches", "_owner", "_plain")

    def __init__(self, owner: Captures, launches: Sequence[Callable[[], None]], *, plain: bool) -> None:
        self._owner, self._launches, self._plain = owner, tuple(launches), plain
        self._generation: int | None = None
        self._key: int | None = None
        self._destroy: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Launch; the work may still run when this returns. Raises ExecutionFailed."""
        ready = self._generation == self._owner.arena.generation
        if not ready:
            self._forget()
        elif self._key is None and not self._plain:
            self._capture()
        if self._key is not None:
            self._owner.replay(self._key)
            return
        generation = self._owner.arena.generation
        for launch in self._launches:
            launch()
        self._generation = generation

    def _capture(self) -> None:
        self._key = self._owner.capture(self._launches)
        self._plain = self._key is None
        if self._key is not None:
            self._destroy = weakref.finalize(self, self._owner.destroy, self._key)
            self._destroy.atexit = False

    def _forget(self) -> None:
        """Destroy a capture that writes to scratch that has moved."""
        if self._destroy is not None:
            self._destroy()
        self._key = self._destroy = None
