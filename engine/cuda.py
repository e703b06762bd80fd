"""The few CUDA runtime calls that zturbo makes, each with its return code checked.

cuda-bindings is imported when a Cuda is made, not before. Knows neither tensors nor engines.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from engine.errors import BackendUnavailable, ExecutionFailed

_DRIVER_TOO_OLD = 35
"""cudaErrorInsufficientDriver: cuda-bindings 13 need a driver of CUDA 13."""


class Cuda:
    """One GPU through the CUDA runtime; extra: of the package zturbo, named where cuda-bindings are missing.

    Raises BackendUnavailable where there is no GPU of this index, or it takes no work.
    """

    def __init__(self, device: int = 0, *, extra: str = "tensorrt") -> None:
        self.rt = _runtime(extra)
        self.device = device
        count = self._count()
        if not 0 <= device < count:
            raise unavailable(f"device {device} of {count} GPUs", "a GPU that the driver lists", "See `nvidia-smi`.")
        try:
            self.use()
        except ExecutionFailed as error:
            remedy = "See in `nvidia-smi` whether another process holds it exclusively."
            raise unavailable(error.actual, "a GPU that takes work", remedy) from error

    def use(self) -> None:
        """Make the GPU the calling thread's. CUDA keeps one for each thread, which whoever else is in it may change."""
        self.call("cudaSetDevice", self.device)

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the CUDA runtime; its result, or None. Raises ExecutionFailed with CUDA's own words.

        An error is told here, and not again to whoever asks CUDA for its last one: the caller may go on, as without
        memory for something that it can do without.
        """
        code, *values = getattr(self.rt, name)(*args)
        if int(code) != 0:
            self.forget_error()
            raise ExecutionFailed(
                f"CUDA, {name}", actual=self._words(code), allowed="success",
                remedy="Free GPU memory where it ran out; else close the pipeline and load it again.",
            )  # fmt: skip
        return values[0] if values else None

    def free(self, name: str, handle: Any) -> None:
        """Call a function that frees or destroys something; within `frees_wait`, at the end of that.

        It may come from a finalizer amid somebody's work on another GPU, so the thread keeps the GPU that it had.
        """
        waiting: list[Callable[[], object]] | None = getattr(_THREAD, "waiting", None)
        if waiting is not None:
            waiting.append(partial(self.free, name, handle))
            return
        before = self.call("cudaGetDevice")
        self.use()
        try:
            self.call(name, handle)
        finally:
            if before != self.device:
                self.call("cudaSetDevice", before)

    def forget_error(self) -> None:
        """Clear the last error that CUDA keeps for whoever asks next; one that broke the GPU's context stays."""
        self.rt.cudaGetLastError()

    def _count(self) -> int:
        code, *values = self.rt.cudaGetDeviceCount()
        if int(code) == 0:
            return int(values[0])
        remedy = "Install or update the driver."
        if int(code) == _DRIVER_TOO_OLD:
            remedy = 'Update the driver, or run `pip install "cuda-bindings<13"`.'
        raise unavailable(self._words(code), "an NVIDIA GPU and its driver", remedy)

    def _words(self, code: Any) -> str:
        text = self.rt.cudaGetErrorString(code)[1]
        return f"error {int(code)}: {text.decode() if isinstance(text, bytes) else text}"


_THREAD = threading.local()


@contextmanager
def frees_wait() -> Iterator[None]:
    """Put off what this thread frees until the block ends, as a capture of its stream must have it.

    A cudaFree by the thread that captures ends the capture, and one can come at any moment: a finalizer of whatever is
    dropped, of another pipeline's tensor too, run by a reference count, the garbage collector or a signal's handler.
    To stop the collector would not hold back the others, so each call that frees waits by itself. Other threads need
    not wait: a capture of mode ThreadLocal leaves them alone.
    """
    _THREAD.waiting = waiting = list[Callable[[], object]]()
    try:
        yield
    finally:
        del _THREAD.waiting
        run_all(waiting)


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step, also after one that fails; then raise the first ExecutionFailed."""
    failures: list[ExecutionFailed] = []
    for step in steps:
        try:
            step()
        except ExecutionFailed as error:  # noqa: PERF203  # the next one must run
            failures.append(error)
    if failures:
        raise failures[0]


def unavailable(actual: str, allowed: str, remedy: str) -> BackendUnavailable:
    """That CUDA cannot be used here."""
    return BackendUnavailable("CUDA", actual=actual, allowed=allowed, remedy=remedy)


def _runtime(extra: str) -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        actual = f"cuda.bindings.runtime cannot be imported ({error})"
        raise unavailable(actual, "cuda-bindings 12 or 13", f"Run `pip install 'zturbo[{extra}]'`.") from error
