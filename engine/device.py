"""A GPU's one stream and everything that is allocated beside it: memory, tensors in it, events.

Owns what it hands out: close() frees all of it, whoever still holds it. Knows no engine.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.binding import Array
from engine.cuda import Cuda

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

    def reserve(self, size_bytes: int) -> int:
        """The address of new memory; `release` or `close` frees it."""
        self.cuda.use()
        address = int(self.cuda.call("cudaMalloc", max(size_bytes, LEAST_BYTES)))
        self._addresses.add(address)
        return address

    def release(self, address: int) -> None:
        """Free memory, once the device is done with it; nothing where close() was first."""
        if address in self._addresses:
            self._addresses.remove(address)
            self.cuda.call("cudaFree", address)

    def tensor(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """A new tensor with no particular contents; its memory is freed with it."""
        return DeviceTensor(self, shape, np.dtype(dtype))

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self.cuda.call("cudaStreamSynchronize", self.stream)

    def mark(self) -> Callable[[], None]:
        """An event behind all that is in the stream; calling it waits for that, a second call does nothing."""
        event = self._idle_events.pop() if self._idle_events else self._event()
        self.cuda.call("cudaEventRecord", event, self.stream)
        pending = [event]

        def wait() -> None:
            while pending:
                self.cuda.call("cudaEventSynchronize", pending[0])
                self._idle_events.append(pending.pop())

        return wait

    def _event(self) -> Any:
        event = self.cuda.call("cudaEventCreateWithFlags", self.cuda.rt.cudaEventDisableTiming)
        self._events.append(event)
        return event

    def close(self) -> None:
        """Wait for the stream, then free it, the events and all memory; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.cuda.use()
        self.synchronize()
        for address in list(self._addresses):
            self.release(address)
        for event in self._events:
            self.cuda.call("cudaEventDestroy", event)
        self.cuda.call("cudaStreamDestroy", self.stream)


class DeviceTensor:
    """A tensor at a fixed address, C-contiguous. Copies are in the stream's order."""

    __slots__ = ("__weakref__", "_device", "address", "dtype", "shape")

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device, self.shape, self.dtype = device, shape, dtype
        self.address = device.reserve(math.prod(shape) * dtype.itemsize)
        weakref.finalize(self, device.release, self.address).atexit = False

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and dtype in; it may change once this returns."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a tensor of {self.dtype} {self.shape}")
        contiguous = np.ascontiguousarray(array)
        self._copy(self.address, contiguous.ctypes.data, contiguous.nbytes, "cudaMemcpyHostToDevice")

    def read(self) -> Array:
        """A copy on the host, once everything before it is done."""
        array: Array = np.empty(self.shape, self.dtype)
        self._copy(array.ctypes.data, self.address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._device.synchronize()
        return array

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        """Memory on the host is pageable, so CUDA returns when it has read, or staged, all of it."""
        cuda = self._device.cuda
        cuda.use()
        kinds = cuda.rt.cudaMemcpyKind
        cuda.call("cudaMemcpyAsync", target, source, size_bytes, getattr(kinds, kind), self._device.stream)
