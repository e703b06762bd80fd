"""The GPU as its driver sees it: name, driver, memory that is free. Whoever asks takes none of its memory.

NVML through the driver's own library, else `nvidia-smi`. Knows no contender.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from engine.machine import NVML


@dataclass(frozen=True, slots=True)
class Gpu:
    """free: asks for the free bytes now."""

    name: str
    driver: str
    total_bytes: int
    free: Callable[[], int]


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def first_gpu() -> Gpu | None:
    """The GPU that a child takes first; None where there is none, or nobody can tell."""
    index = _index()
    if index is None:
        return None
    for make in (_by_nvml, _by_nvidia_smi):
        try:
            return make(index)
        except (OSError, subprocess.CalledProcessError, ValueError, IndexError):  # noqa: PERF203
            continue
    return None


def _index() -> int | None:
    """The GPU by the driver's numbers: the first that CUDA_VISIBLE_DEVICES names, where that is a number; None where
    it hides all.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if first in ("", "-1"):
        return None
    return int(first) if first.isdecimal() else 0


def _by_nvml(index: int) -> Gpu:
    """Raises OSError where NVML is missing or refuses."""
    nvml = ctypes.CDLL(NVML)
    handle, texts = ctypes.c_void_p(), [ctypes.create_string_buffer(96) for _ in range(2)]
    length = ctypes.c_uint(96)
    _check(nvml.nvmlInit_v2())
    _check(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)))
    _check(nvml.nvmlDeviceGetName(handle, texts[0], length))
    _check(nvml.nvmlSystemGetDriverVersion(texts[1], length))

    def memory() -> _Memory:
        found = _Memory()
        _check(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found)))
        return found

    name, driver = (text.value.decode() for text in texts)
    return Gpu(name, driver, int(memory().total), lambda: int(memory().free))


def _check(code: int) -> None:
    if code != 0:
        raise OSError(f"NVML answers with error {code}")


def _by_nvidia_smi(index: int) -> Gpu:
    def ask(what: str) -> list[str]:
        command = ["nvidia-smi", f"--id={index}", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [word.strip() for word in done.stdout.splitlines()[0].split(",")]

    name, driver, total = ask("name,driver_version,memory.total")
    return Gpu(name, driver, int(total) * 2**20, lambda: int(ask("memory.free")[0]) * 2**20)
