"""What a result must say of where it was taken: processor, cores, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from engine.machine import processor_name, usable_cores

PACKAGES = ("onnxruntime", "torch", "diffusers", "transformers", "numpy")


def machine() -> dict[str, str | int]:
    """The processor's name, the cores that this process may use, memory, and the system."""
    return {
        "cpu": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.system(),
    }


def memory_bytes() -> int:
    """Physical memory; 0 where it cannot be told."""
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.virtual_memory().total)


def versions() -> dict[str, str]:
    """Python and the packages that take part."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


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
        """Cores that were busy with other work, on average; more than a few tenths makes the times doubtful."""
        return max(0.0, (self._seconds() - self._before) / (time.perf_counter() - self._begun))

    def _seconds(self) -> float:
        total = self._psutil.cpu_times()
        busy: float = sum(getattr(total, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return busy - sum(sum(process.cpu_times()[:2]) for process in self._ours)
