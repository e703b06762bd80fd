"""Which extra has which Python module, told as a typed error where a module is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ExtraMissing

EXTRAS: dict[str, tuple[str, ...]] = {
    "accelerate": ("export",),
    "cuda": ("tensorrt", "rtx"),
    "diffusers": ("export",),
    "flip_evaluator": ("bench",),
    "huggingface_hub": ("export",),
    "matplotlib": ("bench",),
    "onnx": ("export", "tensorrt", "rtx"),
    "onnxruntime": ("cpu", "gpu"),
    "psutil": ("bench", "tensorrt", "rtx"),
    "safetensors": ("export",),
    "scipy": ("export",),
    "skimage": ("bench",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("rtx",),
    "torch": ("export",),
    "transformers": ("export",),
}
"""The extras of pyproject.toml that install a module; the first is named unless a command prefers another of them."""


@contextmanager
def extra(preferred: str, *, command: str) -> Iterator[None]:
    """Around what a command imports late: a missing library becomes ExtraMissing, which names the extra that has it.

    A module that no extra has is a fault of ours, and stays a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        name = preferred if preferred in EXTRAS[module] else EXTRAS[module][0]
        raise ExtraMissing(
            f"zturbo {command}", actual=f"no Python module '{error.name}' here",
            allowed=f"an installation with the extra '{name}'", remedy=f"Run `pip install 'zturbo[{name}]'`.",
        ) from error  # fmt: skip
