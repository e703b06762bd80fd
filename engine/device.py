"""A GPU's one stream and everything that is allocated beside it: memory, tensors in it, events.

Owns what it hands out: close() frees all of it, whoever still holds it, and what is used afterwards is refused.
Knows no engine.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from engine.binding import Array
from engine.cuda import Cuda
from engine.errors import ExecutionFailed

LEAST_BYTES = 256
"""What TensorRT wants addresses aligned to, and the least that is allocated."""


class Device:
    """One GPU, one stream; all work is in the stream's order. Raises BackendUnavailable or ExecutionFailed."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.call("cudaStreamCreate")
        self._addresses: set[int] = set()
        self._events: list[Any] = []
        self._idle_events: list[Any] = []
        self._closed = False

    def use(self) -> None:
        """Make the GPU the calling thread's. Raises ExecutionFailed once the device is closed."""
        if self._closed:
            raise ExecutionFailed(
                "GPU memory and stream", actual="use after close", allowed="use before close",
                remedy="Load the pipeline again.",
            )  # fmt: skip
        self.cuda.use()

    def reserve(self, size_bytes: int) -> int:
        """The address of new memory; `release` or `close` frees it."""
        self.use()
        address = int(self.cuda.call("cudaMalloc", max(size_bytes, LEAST_BYTES)))
        self._addresses.add(address)
        return address

    def release(self, address: int) -> None:
        """Free memory, once the device is done with it; nothing where close() was first."""
        if address in self._addresses:
            self._addresses.remove(address)
            self.cuda.use()
            self.cuda.call("cudaFree", address)

    def tensor(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """A new tensor with no particular contents; its memory is freed with it."""
        return DeviceTensor(self, shape, np.dtype(dtype))

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self.use()
        self.cuda.call("cudaStreamSynchronize", self.stream)

    def mark(self) -> Callable[[], None]:
        """An event behind all that is in the stream; calling it waits for that, a second call does nothing."""
        self.use()
        event = self._idle_events.pop() if self._idle_events else self._event()
        self.cuda.call("cudaEventRecord", event, self.stream)
        pending = [event]

        def wait() -> None:
            while pending:
                self.use()
                self.cuda.call("cudaEventSynchronize", pending[0])
                self._idle_events.append(pending.pop())

        return wait

    def _event(self) -> Any:
        event = self.cuda.call("cudaEventCreateWithFlags", self.cuda.rt.cudaEventDisableTiming)
        self._events.append(event)
        return event

    def close(self) -> None:
        """Wait for the stream, then free it, the events and all memory; a second call does nothing.

        All of it is freed though a call fails; then the first failure is raised. After a launch that went wrong every
        later call repeats its error.
        """
        if self._closed:
            return
        call = self.cuda.call
        steps: list[Callable[[], object]] = [self.synchronize]
        steps += [partial(self.release, address) for address in self._addresses]
        steps += [partial(call, "cudaEventDestroy", event) for event in self._events]
        try:
            run_all([*steps, partial(call, "cudaStreamDestroy", self.stream)])
        finally:
            self._closed = True


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


class DeviceTensor:
    """A tensor at a fixed address, C-contiguous. Copies are in the stream's order."""

    __slots__ = ("__weakref__", "_device", "address", "dtype", "shape")

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device, self.shape, self.dtype = device, shape, dtype
        self.address = device.reserve(math.prod(shape) * dtype.itemsize)
        weakref.finalize(self, device.release, self.address).atexit = False

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and dtype in; it may change once this returns. Raises ExecutionFailed."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a tensor of {self.dtype} {self.shape}")
        contiguous = np.ascontiguousarray(array)
        self._copy(self.address, contiguous.ctypes.data, contiguous.nbytes, "cudaMemcpyHostToDevice")

    def read(self) -> Array:
        """A copy on the host, once everything before it is done. Raises ExecutionFailed, also after close()."""
        array: Array = np.empty(self.shape, self.dtype)
        self._copy(array.ctypes.data, self.address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._device.synchronize()
        return array

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        """Memory on the host is pageable, so CUDA returns when it has read, or staged, all of it."""
        self._device.use()
        cuda = self._device.cuda
        kinds = cuda.rt.cudaMemcpyKind
        cuda.call("cudaMemcpyAsync", target, source, size_bytes, getattr(kinds, kind), self._device.stream)
