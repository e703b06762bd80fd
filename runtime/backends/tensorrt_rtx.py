"""TensorRT-RTX: the TensorRT backend with RTX's dialect. It ran on no GPU yet: tested against a fake, unproven."""

from __future__ import annotations

from pathlib import Path

from engine.bundle import Bundle
from runtime.backends.base import BackendOptions
from runtime.backends.tensorrt import TensorRTBackend, open_flavour


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """The backend of TensorRT-RTX. options.device: `cuda` or `cuda:N`. Raises BackendUnavailable."""
    return open_flavour("tensorrt_rtx", folder, bundle, options)
