"""ONNX Runtime: CPU by default, any execution provider by name. IOBinding on fixed buffers, no copy in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.binding import Array, Binding, Dims, Graph, Precision
from engine.bundle import Bundle, verified_path
from engine.errors import BackendUnavailable, ExecutionFailed, OptionInvalid
from runtime.backends.base import BackendOptions, Buffer, Launch

MAX_ROWS = 8
"""Rows in one batch: past this the CPU gains nothing, and a decoder's memory grows with it."""
REMEDY = "pip install 'zturbo[cpu]' (or [gpu]; the two exclude each other)."


class OrtBuffer:
    """A tensor that ONNX Runtime reads and writes in place."""

    def __init__(self, ort: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: str, index: int) -> None:
        self.shape, self.dtype = shape, dtype
        if device == "cpu":
            self.array: Array | None = np.zeros(shape, dtype)
            self.value = ort.OrtValue.ortvalue_from_numpy(self.array)
        else:
            self.array, self.value = None, ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, index)

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and dtype in."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{array.dtype} {array.shape} written to a buffer of {self.dtype} {self.shape}")
        if self.array is None:
            self.value.update_inplace(np.ascontiguousarray(array))
        else:
            self.array[...] = array

    def read(self) -> Array:
        """A copy on the host."""
        return cast("Array", self.value.numpy()) if self.array is None else self.array.copy()


class OnnxRuntimeBackend:
    """Sessions by graph name; each launch is one IOBinding."""

    name = "onnxruntime"
    max_rows = MAX_ROWS

    def __init__(self, ort: Any, sessions: dict[str, Any], provider: str, index: int, precision: Precision) -> None:
        self.device, self.precision = provider, precision
        self._ort, self._sessions, self._index = ort, sessions, index
        self._memory = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}.get(provider, "cpu")

    def allocate(self, binding: Binding, dims: Dims) -> OrtBuffer:
        """A zeroed buffer in the provider's memory."""
        return OrtBuffer(self._ort, binding.resolve(dims), np.dtype(binding.dtype), self._memory, self._index)

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:  # noqa: ARG002
        """A launch of the graph's session on these buffers; dims are theirs already."""
        session = self._sessions[graph.name]
        bound = session.io_binding()
        for binding in graph.inputs:
            bound.bind_ortvalue_input(binding.name, cast("OrtBuffer", buffers[binding.name]).value)
        for binding in graph.outputs:
            bound.bind_ortvalue_output(binding.name, cast("OrtBuffer", buffers[binding.name]).value)

        def launch() -> None:
            try:
                session.run_with_iobinding(bound)
            except Exception as error:  # the binding raises many types of its own
                raise ExecutionFailed(
                    f"onnxruntime, graph '{graph.name}'", actual=str(error), allowed="a run without error",
                    remedy="Try a smaller batch or size; if it stays, report it with `zturbo doctor --json`.",
                ) from error  # fmt: skip

        return launch

    def mark(self) -> Callable[[], None]:
        """Nothing to wait for: a run returns when it is done."""
        return _done

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()


def _done() -> None:
    """The event of work that is already done."""


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Sessions for every graph of the variant, each file's hash checked first.

    options.device: `cpu` (default), `cuda`, `cuda:1`, or a provider's name. Raises BackendUnavailable.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendUnavailable(
            "backend onnxruntime", actual=f"not importable ({error})", allowed="onnxruntime ≥ 1.20", remedy=REMEDY
        ) from error
    provider, index = _provider(ort, options.device)
    precision = _precision(bundle, options, provider)
    settings = [(provider, {"device_id": str(index)})] if provider == "CUDAExecutionProvider" else [provider]
    sessions = {
        graph.name: _session(ort, verified_path(folder, bundle, graph.file), settings, options.threads)
        for graph in bundle.graphs(precision)
    }
    return OnnxRuntimeBackend(ort, sessions, provider, index, precision)


def _session(ort: Any, path: Path, providers: list[Any], threads: int | None) -> Any:
    """One session. Its threads do not spin when idle: five sessions share the cores, and one runs at a time."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the binding raises many types of its own
        raise BackendUnavailable(
            "backend onnxruntime", actual=f"{path.name} was refused ({error})", allowed="a graph it can load",
            remedy="Update onnxruntime, or take another --device.",
        ) from error  # fmt: skip


def _provider(ort: Any, device: str | None) -> tuple[str, int]:
    """(provider, device index) of `cpu`, `cuda`, `cuda:1` or a provider's own name."""
    word, _, number = (device or "cpu").partition(":")
    known = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    provider = known.get(word.removesuffix("ExecutionProvider").lower())
    if provider is None or (number and not number.isdecimal()):
        if provider is None and word.lower() in ("cuda", "tensorrt", "dml", "openvino", "rocm", "coreml"):
            raise BackendUnavailable(
                "backend onnxruntime", actual=f"no provider for '{device}'", allowed=", ".join(known), remedy=REMEDY
            )
        raise OptionInvalid("device", actual=repr(device), allowed=", ".join(known), remedy="Add :N for the N-th one.")
    return provider, int(number or 0)


def _precision(bundle: Bundle, options: BackendOptions, provider: str) -> Precision:
    """What was asked, else fp32 on the CPU and fp16 elsewhere, else what the bundle has."""
    if options.precision is not None:
        return options.precision
    wanted: Precision = "fp32" if provider == "CPUExecutionProvider" else "fp16"
    return wanted if wanted in bundle.variants else next(iter(bundle.variants))
