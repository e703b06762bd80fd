"""PyTorch: the exported modules themselves, from the source folder. The parity reference, and a fallback.

A module runs whole: what was hoisted out of its graph is computed in every step, from the family's own inputs.
Reaches export/ lazily; nothing of it is imported before this backend is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine.binding import Array, Binding, Dims, Graph, PlanPrecision, Precision
from engine.bundle import Bundle
from engine.errors import BackendUnavailable, ExecutionFailed, LoraInvalid, OptionInvalid, SourceError
from runtime.backends.base import BackendOptions, Buffer, Launch, NoCaptures, asked_variant, done, in_order

MAX_ROWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class TorchRow:
    """A copy of one entry of a buffer, on its device."""

    tensor: Any

    @property
    def size_bytes(self) -> int:
        """What it occupies."""
        return int(self.tensor.nbytes)


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

        source = torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of the others
        if source.shape != self.tensor.shape or source.dtype != self.tensor.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a buffer of {self.tensor.dtype} {self.shape}")
        self.tensor.copy_(source)

    def read(self) -> Array:
        """A copy on the host."""
        return cast("Array", self.tensor.cpu().numpy().copy())

    def save_row(self, index: int) -> TorchRow | None:
        """A copy of an entry."""
        return TorchRow(self.tensor[index].clone())

    def load_row(self, index: int, saved: TorchRow) -> None:
        """Put a copy back."""
        self.tensor[index].copy_(saved.tensor)


class UnusedBuffer(TorchBuffer):
    """The wire of a prologue, which no module makes or reads: a shape without memory, and nothing worth keeping.

    What is kept of a prompt is what its prologue made; here there is nothing, so the text encoder runs again.
    """

    def write(self, array: Array) -> None:
        """Nothing: no module reads it."""

    def save_row(self, index: int) -> None:
        """None: no module has written here."""


class PytorchBackend:
    """Modules with their bindings (export's GraphSpec), by graph name. unused: the wires that no module makes."""

    name = "pytorch"
    captures = NoCaptures()

    def __init__(
        self, torch: Any, specs: dict[str, Any], device: str, precision: PlanPrecision, unused: Collection[str] = ()
    ) -> None:
        self.device, self.precision = device, precision
        self._torch, self._specs, self._unused = torch, specs, unused

    def allocate(self, binding: Binding, dims: Dims) -> TorchBuffer:
        """A zeroed tensor on the device."""
        dtype, shape = getattr(self._torch, binding.dtype), binding.resolve(dims)
        if binding.name in self._unused:
            return UnusedBuffer(self._torch.zeros((), dtype=dtype, device=self.device).expand(shape))
        return TorchBuffer(self._torch.zeros(shape, dtype=dtype, device=self.device))

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:  # noqa: ARG002
        """A launch of the module on these tensors; a prologue's does nothing, its module is the graph's it is of."""
        if graph.hoisted_from:
            return done
        from export.device import strict

        spec, torch = self._specs[graph.name], self._torch
        module = spec.module
        inputs = [cast("TorchBuffer", buffers[binding.name]).tensor for binding in spec.inputs]
        outputs = [cast("TorchBuffer", buffers[binding.name]).tensor for binding in spec.outputs]

        def launch() -> None:
            try:
                with torch.inference_mode(), strict():
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

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """One after another."""
        return in_order(launches)

    def row_counts(self, height: int, width: int, tokens: int) -> range:  # noqa: ARG002
        """The same at every size and length."""
        return range(1, MAX_ROWS + 1)

    def mark(self) -> Callable[[], None]:
        """An event on the GPU; nothing to wait for on the CPU."""
        if not self.device.startswith("cuda"):
            return done
        event = self._torch.cuda.current_stream(self.device).record_event()
        return cast("Callable[[], None]", event.synchronize)

    def close(self) -> None:
        """Drop the modules, and hand cached GPU memory back."""
        self._specs.clear()
        if self.device.startswith("cuda"):
            self._torch.cuda.empty_cache()


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> PytorchBackend:
    """The source model's modules, once the source's hash is that of bundle.json. Raises BackendUnavailable."""
    try:
        import torch

        from export.families import FusedLoraFile, ModelOptions, open_model
        from export.source import source_sha256
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            "backend pytorch", actual=f"not importable ({error})", allowed="torch, diffusers and transformers",
            remedy="pip install 'zturbo[export]'.",
        ) from error  # fmt: skip
    device = _device(torch, options)
    precision = _precision(options, device)
    source = (folder / bundle.source.path).resolve()
    try:
        loras = tuple(FusedLoraFile((folder / one.path).resolve(), one.weight, one.sha256) for one in bundle.loras)
        rank = 0 if bundle.lora_inputs is None else bundle.lora_inputs.rank
        model = open_model(source, ModelOptions(loras=loras, lora_rank=rank, masked=bundle.masked))
        found = source_sha256(source, model.components)
    except LoraInvalid as error:
        raise _no_source(source, f"a fused LoRA that cannot be had ({error})", "the file that was fused") from error
    except (SourceError, OSError) as error:
        raise _no_source(source, f"unreadable ({error})", "the folder that was exported") from error
    if found != bundle.source.sha256:
        raise _no_source(source, f"sha256 {found[:12]}…", f"{bundle.source.sha256[:12]}…")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        specs = {spec.name: spec for spec in model.specs(precision)}
        for spec in specs.values():
            spec.module.to(device)
    except (SourceError, RuntimeError) as error:  # out of memory among them
        raise _no_source(source, f"not loadable on {device} ({error})", "weights that fit this device") from error
    unused = {b.name for graph in bundle.variants.get(precision, ()) if graph.hoisted_from for b in graph.outputs}
    return PytorchBackend(torch, specs, device, precision, unused)


def _precision(options: BackendOptions, device: str) -> Precision:
    """What was asked, else fp16 on a GPU and fp32 on the CPU. Raises BackendUnavailable for what no module has."""
    if options.precision is None:
        return "fp16" if device.startswith("cuda") else "fp32"
    return asked_variant("pytorch", options.precision)


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
