"""PyTorch: the exported modules themselves, from the source folder. The parity reference, and a fallback.

Reaches export/ lazily; nothing of it is imported before this backend is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from engine.binding import Array, Binding, Dims, Graph, Precision
from engine.bundle import Bundle
from engine.errors import BackendUnavailable, ExecutionFailed, OptionInvalid, SourceError
from runtime.backends.base import BackendOptions, Buffer, Launch, done

MAX_ROWS = 16


class TorchBuffer:
    """A tensor on the backend's device."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and dtype in."""
        import torch

        source = torch.from_numpy(array)
        if source.shape != self.tensor.shape or source.dtype != self.tensor.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a buffer of {self.tensor.dtype} {self.shape}")
        self.tensor.copy_(source)

    def read(self) -> Array:
        """A copy on the host."""
        return cast("Array", self.tensor.cpu().numpy().copy())


class PytorchBackend:
    """Modules by graph name."""

    name = "pytorch"

    def __init__(self, torch: Any, modules: dict[str, Any], device: str, precision: Precision) -> None:
        self.device, self.precision = device, precision
        self._torch, self._modules = torch, modules

    def allocate(self, binding: Binding, dims: Dims) -> TorchBuffer:
        """A zeroed tensor on the device."""
        dtype = getattr(self._torch, binding.dtype)
        return TorchBuffer(self._torch.zeros(binding.resolve(dims), dtype=dtype, device=self.device))

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:  # noqa: ARG002
        """A launch of the module on these tensors."""
        module, torch = self._modules[graph.name], self._torch
        inputs = [cast("TorchBuffer", buffers[binding.name]).tensor for binding in graph.inputs]
        outputs = [cast("TorchBuffer", buffers[binding.name]).tensor for binding in graph.outputs]

        def launch() -> None:
            try:
                with torch.inference_mode(), strict(torch):
                    results = module(*inputs)
                    results = results if isinstance(results, tuple) else (results,)
                    for target, result in zip(outputs, results, strict=True):
                        target.copy_(result)
            except RuntimeError as error:  # out of memory among them
                raise ExecutionFailed(
                    f"pytorch, graph '{graph.name}'", actual=str(error), allowed="a run without error",
                    remedy="Try a smaller batch or size.",
                ) from error  # fmt: skip

        return launch

    def max_rows(self, height: int, width: int) -> int:  # noqa: ARG002
        """The same at every size."""
        return MAX_ROWS

    def mark(self) -> Callable[[], None]:
        """An event on the GPU; nothing to wait for on the CPU."""
        if not self.device.startswith("cuda"):
            return done
        event = self._torch.cuda.current_stream(self.device).record_event()
        return cast("Callable[[], None]", event.synchronize)

    def close(self) -> None:
        """Drop the modules, and hand cached GPU memory back."""
        self._modules.clear()
        if self.device.startswith("cuda"):
            self._torch.cuda.empty_cache()


@contextmanager
def strict(torch: Any) -> Iterator[None]:
    """Within the block float32 is float32 on a GPU: torch lets convolutions round to TF32's ten bits by default."""
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            place.allow_tf32 = value


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> PytorchBackend:
    """The source model's modules, once the source's hash is that of bundle.json. Raises BackendUnavailable."""
    try:
        import torch

        from export.families import open_model
        from export.source import source_sha256
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            "backend pytorch", actual=f"not importable ({error})", allowed="torch, diffusers and transformers",
            remedy="pip install 'zturbo[export]'.",
        ) from error  # fmt: skip
    device = _device(torch, options)
    source = (folder / bundle.source.path).resolve()
    try:
        model = open_model(source)
        found = source_sha256(source, model.components)
    except (SourceError, OSError) as error:
        raise _no_source(source, f"unreadable ({error})", "the folder that was exported") from error
    if found != bundle.source.sha256:
        raise _no_source(source, f"sha256 {found[:12]}…", f"{bundle.source.sha256[:12]}…")
    precision: Precision = options.precision or ("fp16" if device.startswith("cuda") else "fp32")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        modules = {spec.name: spec.module.to(device) for spec in model.specs(precision)}
    except (SourceError, RuntimeError) as error:  # out of memory among them
        raise _no_source(source, f"not loadable on {device} ({error})", "weights that fit this device") from error
    return PytorchBackend(torch, modules, device, precision)


def _device(torch: Any, options: BackendOptions) -> str:
    """The device that was asked for, else the first GPU, else the CPU. Raises OptionInvalid or BackendUnavailable."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = ("cuda" if count else "cpu") if options.device is None else options.device
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device)
    if match is None:
        raise OptionInvalid(
            "device", actual=repr(device), allowed="cpu, cuda, cuda:N", remedy="Leave it out for the default."
        )
    if device != "cpu" and int(match[1] or 0) >= count:
        actual, allowed = f"device '{device}' with {count} usable GPUs", "a GPU that torch can use, or cpu"
        raise BackendUnavailable("backend pytorch", actual=actual, allowed=allowed, remedy="Pass --device cpu.")
    return device


def _no_source(source: Path, actual: str, allowed: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"backend pytorch, source {source}", actual=actual, allowed=allowed, remedy="Export that source again."
    )
