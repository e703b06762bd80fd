"""This machine's cores, memory, GPU, driver and CUDA: what a plan was made on, and what it is to run on."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.cuda import Cuda, unavailable
from engine.errors import ExecutionFailed

NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A GPU by its model's name, its compute capability (`9.0`), the driver's version, and the driver's CUDA."""

    gpu: str
    compute_capability: str
    driver: str
    cuda: str


def usable_cores() -> int:
    """The cores that this process may use, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """The bytes of host memory that new processes may take, None where psutil, which can tell, is not installed.

    A container may be allowed less than the machine has; what it may drop of its file caches counts as free.
    """
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None
    return min([int(psutil.virtual_memory().available), *cgroup_memory()])


def cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each memory limit of this process's control groups leaves, in bytes; nothing where there is no limit."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = base / path.strip("/")
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(base))):
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                yield max(limit - used + _droppable(group), 0)


def _number(path: Path) -> int | None:
    """A number that a control group tells; None where it tells none, such as `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _droppable(group: Path) -> int:
    try:
        pairs = [line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return sum(int(value) for name, value in pairs if name == "inactive_file")


def processor_name() -> str:
    """The processor's name for people."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_of(cuda: Cuda) -> Machine:
    """The machine that a Cuda runs on. Raises BackendUnavailable."""
    try:
        properties = cuda.call("cudaGetDeviceProperties", cuda.device)
        version = int(cuda.call("cudaDriverGetVersion"))
    except ExecutionFailed as error:
        raise unavailable(error.actual, "a GPU that answers", "See `nvidia-smi`, or restart the driver.") from error
    name = properties.name
    return Machine(
        gpu=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_driver_version() or "unknown",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def free_gpu_memory(cuda: Cuda) -> int | None:
    """The free bytes of a Cuda's memory, None where it does not tell."""
    try:
        return int(cuda.call("cudaMemGetInfo"))
    except ExecutionFailed:
        return None


def _driver_version() -> str | None:
    """The driver's own version (`580.95.05`), which the CUDA runtime does not tell; None where NVML is missing."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    buffer = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() != 0:
        return None
    failed = nvml.nvmlSystemGetDriverVersion(buffer, ctypes.c_uint(len(buffer)))
    nvml.nvmlShutdown()
    return None if failed else buffer.value.decode()
