"""A GPU's one stream and everything that is allocated beside it: memory, tensors in it, events.

Owns what it hands out: close() frees all of it, whoever still holds it, and what is used afterwards is refused.
Knows no engine.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from engine.binding import Array
from engine.cuda import Cuda, run_all
from engine.errors import ExecutionFailed

LEAST_BYTES = 256
"""What TensorRT wants addresses aligned to, and the least that is allocated."""


class Device:
    """One GPU, one stream; all work is in the stream's order. Raises BackendUnavailable or ExecutionFailed."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        cuda.use()
        self.stream = cuda.call("cudaStreamCreate")
        self._addresses: set[int] = set()
        self._events: list[Any] = []
        self._idle_events: list[Any] = []
        self._idle_stamps: list[Any] = []
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
            self.cuda.free("cudaFree", address)

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
        event = self._idle_events.pop() if self._idle_events else self._event(self.cuda.rt.cudaEventDisableTiming)
        self.cuda.call("cudaEventRecord", event, self.stream)
        pending = [event]

        def wait() -> None:
            while pending:
                self.use()
                self.cuda.call("cudaEventSynchronize", pending[0])
                self._idle_events.append(pending.pop())

        return wait

    def stamp(self) -> Stamp:
        """The moment at which the stream gets here, for `elapsed_ms`."""
        self.use()
        stamp = Stamp(self._idle_stamps.pop() if self._idle_stamps else self._event(0))
        weakref.finalize(stamp, self._idle_stamps.append, stamp.event).atexit = False
        self.cuda.call("cudaEventRecord", stamp.event, self.stream)
        return stamp

    def elapsed_ms(self, begin: Stamp, end: Stamp) -> float:
        """The milliseconds between two stamps by the GPU's own clock, once the stream got to the second."""
        self.use()
        self.cuda.call("cudaEventSynchronize", end.event)
        return float(self.cuda.call("cudaEventElapsedTime", begin.event, end.event))

    def _event(self, flags: int) -> Any:
        event = self.cuda.call("cudaEventCreateWithFlags", flags)
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


class Stamp:
    """A moment in a device's stream; its event is used again once this is dropped."""

    __slots__ = ("__weakref__", "event")

    def __init__(self, event: Any) -> None:
        self.event = event


class DeviceTensor:
    """A tensor at a fixed address, C-contiguous. Copies are in the stream's order."""

    __slots__ = ("__weakref__", "_device", "address", "dtype", "shape")

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device, self.shape, self.dtype = device, shape, dtype
        self.address = device.reserve(self.size_bytes)
        weakref.finalize(self, device.release, self.address).atexit = False

    @property
    def size_bytes(self) -> int:
        """What its elements occupy."""
        return math.prod(self.shape) * self.dtype.itemsize

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

    def save_row(self, index: int) -> DeviceTensor:
        """A copy of one entry of the first axis, on the device. Raises ExecutionFailed."""
        saved = DeviceTensor(self._device, self.shape[1:], self.dtype)
        self._copy(saved.address, self._row(index), saved.size_bytes, "cudaMemcpyDeviceToDevice")
        return saved

    def load_row(self, index: int, saved: DeviceTensor) -> None:
        """Put what `save_row` gave at index of the first axis. Raises ExecutionFailed."""
        if (saved.shape, saved.dtype) != (self.shape[1:], self.dtype):
            raise ValueError(f"{saved.dtype} {saved.shape} loaded into a row of {self.dtype} {self.shape}")
        self._copy(self._row(index), saved.address, saved.size_bytes, "cudaMemcpyDeviceToDevice")

    def copy_row(self, index: int, source: DeviceTensor, source_index: int) -> None:
        """Copy one entry of another tensor's first axis to index of this one's. Raises ExecutionFailed."""
        if (source.shape[1:], source.dtype) != (self.shape[1:], self.dtype):
            raise ValueError(f"a row of {source.dtype} {source.shape} copied into {self.dtype} {self.shape}")
        size_bytes = self.size_bytes // self.shape[0]
        self._copy(self._row(index), source._row(source_index), size_bytes, "cudaMemcpyDeviceToDevice")

    def _row(self, index: int) -> int:
        """The address of an entry of the first axis."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"row {index} of {self.shape[0]}")
        return self.address + index * (self.size_bytes // self.shape[0])

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        """Memory on the host is pageable, so CUDA returns when it has read, or staged, all of it."""
        self._device.use()
        cuda = self._device.cuda
        kinds = cuda.rt.cudaMemcpyKind
        cuda.call("cudaMemcpyAsync", target, source, size_bytes, getattr(kinds, kind), self._device.stream)
