"""The few CUDA runtime calls that zturbo makes, each with its return code checked.

cuda-bindings is imported when a Cuda is made, not before. Knows neither tensors nor engines.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from engine.errors import BackendUnavailable, ExecutionFailed

_DRIVER_TOO_OLD = 35
"""cudaErrorInsufficientDriver: cuda-bindings 13 need a driver of CUDA 13."""


class Cuda:
    """One GPU through the CUDA runtime; extra: of the package zturbo, named where cuda-bindings are missing.

    Raises BackendUnavailable where there is no GPU of this index, or it takes no work.
    """

    def __init__(self, device: int = 0, *, extra: str = "tensorrt") -> None:
        self.rt = _runtime(extra)
        self.device = device
        self._threads = threading.local()
        count = self._count()
        if not 0 <= device < count:
            raise unavailable(f"device {device} of {count} GPUs", "a GPU that the driver lists", "See `nvidia-smi`.")
        try:
            self.use()
        except ExecutionFailed as error:
            remedy = "See in `nvidia-smi` whether another process holds it exclusively."
            raise unavailable(error.actual, "a GPU that takes work", remedy) from error

    def use(self) -> None:
        """Make the GPU the calling thread's; CUDA keeps one for each thread."""
        if not hasattr(self._threads, "device"):
            self.call("cudaSetDevice", self.device)
            self._threads.device = self.device

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the CUDA runtime; its result, or None. Raises ExecutionFailed with CUDA's own words."""
        code, *values = getattr(self.rt, name)(*args)
        if int(code) != 0:
            raise ExecutionFailed(
                f"CUDA, {name}", actual=self._words(code), allowed="success",
                remedy="Free GPU memory where it ran out; else close the pipeline and load it again.",
            )  # fmt: skip
        return values[0] if values else None

    def _count(self) -> int:
        code, *values = self.rt.cudaGetDeviceCount()
        if int(code) == 0:
            return int(values[0])
        remedy = "Install or update the driver."
        if int(code) == _DRIVER_TOO_OLD:
            remedy = 'Update the driver, or run `pip install "cuda-bindings<13"`.'
        raise unavailable(self._words(code), "an NVIDIA GPU and its driver", remedy)

    def _words(self, code: Any) -> str:
        text = self.rt.cudaGetErrorString(code)[1]
        return f"error {int(code)}: {text.decode() if isinstance(text, bytes) else text}"


def unavailable(actual: str, allowed: str, remedy: str) -> BackendUnavailable:
    """That CUDA cannot be used here."""
    return BackendUnavailable("CUDA", actual=actual, allowed=allowed, remedy=remedy)


def _runtime(extra: str) -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        actual = f"cuda.bindings.runtime cannot be imported ({error})"
        raise unavailable(actual, "cuda-bindings 12 or 13", f"Run `pip install 'zturbo[{extra}]'`.") from error
