"""What a result must say of where it was taken: processor, cores, GPU, versions, commit."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.cuda import Cuda
from engine.dialect import FLAVOURS, load_dialect
from engine.errors import BackendUnavailable
from engine.machine import machine_of, processor_name, usable_cores

PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "transformers", "numpy", "tensorrt", "tensorrt-rtx",
    "cuda-bindings",
)  # fmt: skip


def machine() -> dict[str, str | int]:
    """The processor's name, the cores that this process may use, memory, and the system."""
    return {
        "cpu": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.system(),
    }


def gpu_facts(backend: str) -> dict[str, str]:
    """The GPU, where there is one, the processor, and the versions that a backend's result is of."""
    found = {"python": platform.python_version(), "numpy": np.__version__, "processor": processor_name()}
    with contextlib.suppress(BackendUnavailable):
        here = machine_of(Cuda())
        found |= {name: getattr(here, name) for name in ("gpu", "driver", "compute_capability", "cuda")}
    if backend in FLAVOURS:
        return {**found, backend: load_dialect(backend).version}
    if backend == "onnxruntime":  # its distribution may be called otherwise: onnxruntime-gpu
        return {**found, backend: importlib.import_module(backend).__version__}
    package = {"pytorch": "torch"}.get(backend, backend)
    return {**found, package: importlib.metadata.version(package)}


def memory_bytes() -> int:
    """Physical memory; 0 where it cannot be told."""
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.virtual_memory().total)


def versions() -> dict[str, str]:
    """Python and those of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(root: Path) -> str:
    """The checked out commit, with `-dirty` where tracked files differ; `unknown` outside a git checkout."""
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Bystanders:
    """How much of the processor everything but the measured processes took, since it was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        import psutil

        self._ours = [psutil.Process(pid) for pid in (os.getpid(), *pids)]
        self._psutil, self._begun, self._before = psutil, time.perf_counter(), 0.0
        self._before = self._seconds()

    def cores(self) -> float:
        """Cores that were busy with other work, on average; more than a few tenths makes the times doubtful.

        Raises ProcessLookupError where a measured process is gone.
        """
        return max(0.0, (self._seconds() - self._before) / (time.perf_counter() - self._begun))

    def _seconds(self) -> float:
        total = self._psutil.cpu_times()
        busy: float = sum(getattr(total, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        try:
            return busy - sum(sum(process.cpu_times()[:2]) for process in self._ours)
        except self._psutil.NoSuchProcess as error:
            raise ProcessLookupError(str(error)) from error
