"""What this machine is: system, processor, GPUs and the installed libraries that matter here.

Only looks; imports nothing heavy, and knows nothing of bundles or backends.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from engine.machine import processor_name, usable_cores

LIBRARIES = (
    "zturbo", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino",
    "tensorrt", "tensorrt-rtx", "cuda-bindings", "torch", "diffusers", "transformers", "onnx",
)  # fmt: skip
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU as its driver names it."""

    name: str
    compute_capability: str
    memory_mib: int | None
    driver: str


@dataclass(frozen=True, slots=True)
class Host:
    """Facts about this machine; libraries holds None for what is not installed."""

    python: str
    system: str
    processor: str
    cores: int
    gpus: tuple[Gpu, ...]
    no_gpu: str
    libraries: dict[str, str | None]
    providers: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """The same as JSON types."""
        return asdict(self)


def this_host() -> Host:
    """Look at the machine once."""
    gpus, no_gpu = find_gpus()
    return Host(
        python=platform.python_version(), system=platform.platform(), processor=processor_name(), cores=usable_cores(),
        gpus=gpus, no_gpu=no_gpu, libraries={name: installed(name) for name in LIBRARIES}, providers=providers(),
    )  # fmt: skip


def installed(name: str) -> str | None:
    """A distribution's version, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def providers() -> tuple[str, ...]:
    """The execution providers of the ONNX Runtime that is installed, if one is."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA GPUs, as the driver's own tool lists them, and where there are none the reason."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return (), "no NVIDIA driver found (no nvidia-smi)"
    try:
        listed = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not answer: {error}"
    if listed.returncode != 0:
        return (), f"nvidia-smi failed: {listed.stdout.strip() or listed.stderr.strip()}"
    return tuple(parse_gpu(line) for line in listed.stdout.splitlines() if line.strip()), ""


def parse_gpu(line: str) -> Gpu:
    """One line of nvidia-smi's CSV."""
    name, capability, memory, driver = (cell.strip() for cell in line.rsplit(",", 3))
    return Gpu(name, capability, int(memory) if memory.isdigit() else None, driver)
