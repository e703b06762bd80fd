"""cuda.bindings.runtime with host memory for a GPU's: every call succeeds, or is told to fail. Counts what is alive.

What is enqueued runs at once, or is recorded while its stream captures. As on a GPU, a thread that captures must not
allocate, free or wait: its capture is lost.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

OUT_OF_MEMORY, UNSUPPORTED, INVALIDATED, NO_CAPTURE = 2, 900, 901, 401


class FakeCuda(ModuleType):
    """The module; `fails` maps a function's name to the error code it returns. calls: the functions in turn.

    step_ms: what each piece of enqueued work takes by the clock of the events.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaEventDisableTiming = 2
    free_bytes = 80 << 30
    step_ms = 0.25

    def __init__(self, gpu: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0), count: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpu, self.capability, self.count = gpu, capability, count
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.handles: set[int] = set()
        self.fails: dict[str, int] = {}
        self.calls: list[str] = []
        self._next = 1
        self.current = threading.local()
        self.placed: dict[int, int] = {}
        self.last_error = 0
        self.recording: list[Callable[[], None]] | None = None
        self.invalid = False
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.clock_ms = 0.0
        self.times: dict[int, float] = {}

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or name == "cudaGetErrorString":
            return found
        self.calls.append(name)
        if name in self.fails:
            self.recording = None if name == "cudaStreamEndCapture" else self.recording
            return lambda *_: self._told((self.fails[name], None))
        return found if name == "cudaGetLastError" else lambda *args: self._told(found(*args))

    def _told(self, result):
        """As CUDA does, keep the last error until somebody asks for it."""
        self.last_error = int(result[0]) or self.last_error
        return result

    @property
    def alive(self) -> int:
        """Allocations, streams, events and graphs that were not freed."""
        return len(self.memory) + len(self.handles)

    def cudaGetDeviceCount(self):
        return 0, self.count

    def cudaGetDeviceProperties(self, device):
        major, minor = self.capability
        return 0, SimpleNamespace(name=self.gpu.encode(), major=major, minor=minor)

    def cudaMemGetInfo(self):
        return 0, self.free_bytes, self.free_bytes

    def cudaDriverGetVersion(self):
        return 0, 13000

    def cudaGetErrorString(self, code):
        return 0, {OUT_OF_MEMORY: b"out of memory", 100: b"no CUDA-capable device is detected"}.get(
            int(code), b"failed"
        )

    def cudaSetDevice(self, device):
        self.current.device = device
        return (0,)

    def cudaGetDevice(self):
        return 0, getattr(self.current, "device", 0)

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        """What an engine does to launch: now, or recorded. False where the capture is lost."""
        assert stream in self.handles
        if self.recording is None:
            self.clock_ms += self.step_ms
            work()
        elif not self.invalid:
            self.recording.append(work)
        return not self.invalid

    def _loses_capture(self) -> bool:
        self.invalid |= self.recording is not None
        return self.invalid

    def cudaStreamBeginCapture(self, stream, mode):
        assert stream in self.handles
        assert mode == 1
        assert self.recording is None
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        if self.recording is None:
            return NO_CAPTURE, None
        recorded, self.recording = self.recording, None
        if self.invalid:
            self.invalid = False
            return INVALIDATED, None
        _, handle = self._handle()
        self.graphs[handle] = recorded
        return 0, handle

    def cudaGraphInstantiateWithFlags(self, graph, flags):
        assert flags == 0
        _, handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return 0, handle

    def cudaGraphLaunch(self, executable, stream):
        for work in self.graphs[executable]:
            self.enqueue(stream, work)
        return (0,)

    def _destroy_graph(self, handle):
        del self.graphs[handle]
        return self._destroy(handle)

    def cudaEventElapsedTime(self, begin, end):
        return 0, self.times[end] - self.times[begin]

    def cudaEventRecord(self, event, stream):
        assert {event, stream} <= self.handles
        self.times[event] = self.clock_ms
        return (0,)

    def cudaMalloc(self, size):
        if self._loses_capture():
            return UNSUPPORTED, None
        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        self.placed[ctypes.addressof(block)] = getattr(self.current, "device", 0)
        return 0, ctypes.addressof(block)

    def cudaFree(self, address):
        if self._loses_capture():
            return UNSUPPORTED, None
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        ends = {1: [target], 2: [source], 3: [target, source]}[kind]
        for address in ends:
            assert any(block <= address and address + size <= block + len(self.memory[block]) for block in self.memory)
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size) and None)
        return (0,)

    def _handle(self, *_):
        self._next += 1
        self.handles.add(self._next)
        self.placed[self._next] = getattr(self.current, "device", 0)
        return 0, self._next

    def _destroy(self, handle):
        self.handles.remove(handle)
        return (0,)

    def _wait(self, handle, *_):
        assert handle in self.handles
        return (UNSUPPORTED,) if self._loses_capture() else (0,)

    def cudaGetLastError(self):
        last, self.last_error = self.last_error, 0
        return (last,)

    cudaStreamCreate = cudaEventCreateWithFlags = _handle
    cudaStreamDestroy = cudaEventDestroy = _destroy
    cudaGraphDestroy = cudaGraphExecDestroy = _destroy_graph
    cudaStreamSynchronize = cudaEventSynchronize = _wait


def install(monkeypatch: pytest.MonkeyPatch, module: FakeCuda) -> FakeCuda:
    """Make it what `import cuda.bindings.runtime` gives, for one test."""
    for name, entry in (("cuda", ModuleType("cuda")), ("cuda.bindings", ModuleType("cuda.bindings"))):
        monkeypatch.setitem(sys.modules, name, entry)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module
