"""cuda.bindings.runtime with host memory for a GPU's: every call succeeds, or is told to fail. Counts what is alive."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import pytest

OUT_OF_MEMORY = 2


class FakeCuda(ModuleType):
    """The module; `fails` maps a function's name to the error code it returns. calls: the functions in turn."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaEventDisableTiming = 2

    def __init__(self, gpu: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0), count: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpu, self.capability, self.count = gpu, capability, count
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.handles: set[int] = set()
        self.fails: dict[str, int] = {}
        self.calls: list[str] = []
        self._next = 1

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or name == "cudaGetErrorString":
            return found
        self.calls.append(name)
        return (lambda *_: (self.fails[name], None)) if name in self.fails else found

    @property
    def alive(self) -> int:
        """Allocations, streams and events that were not freed."""
        return len(self.memory) + len(self.handles)

    def cudaGetDeviceCount(self):
        return 0, self.count

    def cudaGetDeviceProperties(self, device):
        major, minor = self.capability
        return 0, SimpleNamespace(name=self.gpu.encode(), major=major, minor=minor)

    def cudaDriverGetVersion(self):
        return 0, 13000

    def cudaGetErrorString(self, code):
        return 0, {OUT_OF_MEMORY: b"out of memory", 100: b"no CUDA-capable device is detected"}.get(
            int(code), b"failed"
        )

    def cudaSetDevice(self, device):
        return (0,)

    def cudaMalloc(self, size):
        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream in self.handles
        device = target if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert len(self.memory[device]) >= size
        ctypes.memmove(target, source, size)
        return (0,)

    def _handle(self, *_):
        self._next += 1
        self.handles.add(self._next)
        return 0, self._next

    def _destroy(self, handle):
        self.handles.remove(handle)
        return (0,)

    def _known(self, handle, *_):
        assert handle in self.handles
        return (0,)

    cudaStreamCreate = cudaEventCreateWithFlags = _handle
    cudaStreamDestroy = cudaEventDestroy = _destroy
    cudaStreamSynchronize = cudaEventRecord = cudaEventSynchronize = _known


def install(monkeypatch: pytest.MonkeyPatch, module: FakeCuda) -> FakeCuda:
    """Make it what `import cuda.bindings.runtime` gives, for one test."""
    for name, entry in (("cuda", ModuleType("cuda")), ("cuda.bindings", ModuleType("cuda.bindings"))):
        monkeypatch.setitem(sys.modules, name, entry)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module
