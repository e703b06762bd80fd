"""ONNX Runtime: CPU by default, any execution provider by name. IOBinding on fixed buffers, no copy in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.binding import Array, Binding, Dims, Graph, Precision
from engine.bundle import Bundle, verified_graph
from engine.errors import BackendUnavailable, ExecutionFailed, OptionInvalid
from runtime.backends.base import BackendOptions, Buffer, HostRow, Launch, NoCaptures, asked_variant, done, in_order
from runtime.backends.ort_sessions import Sessions, parts_of, physical_cores

CPU = "CPUExecutionProvider"
NUMBERED = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider")
"""Providers that take a device's number."""
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

    def part(self, ort: Any, index: int, count: int) -> Any:
        """The index-th of `count` equal parts along the first axis, on the same memory."""
        if count == 1 or self.array is None:
            return self.value
        size = self.shape[0] // count
        return ort.OrtValue.ortvalue_from_numpy(self.array[index * size : (index + 1) * size])

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

    def save_row(self, index: int) -> HostRow | None:
        """A copy of an entry; None in a provider's own memory, of which ONNX Runtime copies whole tensors only."""
        return None if self.array is None else HostRow.of(self.array, index)

    def load_row(self, index: int, saved: HostRow) -> None:
        """Put a copy back."""
        assert self.array is not None
        self.array[index] = saved.array


class OnnxRuntimeBackend:
    """Sessions by graph name; a launch is one IOBinding for each part of the batch."""

    name = "onnxruntime"
    captures = NoCaptures()

    def __init__(self, ort: Any, sessions: Sessions, provider: str, index: int, precision: Precision) -> None:
        self.device, self.precision = provider, precision
        self._ort, self._sessions, self._index = ort, sessions, index
        self._workers = ThreadPoolExecutor(max(1, sessions.threads - 1), "zturbo-onnxruntime")
        self._memory = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}.get(provider, "cpu")

    def allocate(self, binding: Binding, dims: Dims) -> OrtBuffer:
        """A zeroed buffer in the provider's memory."""
        return OrtBuffer(self._ort, binding.resolve(dims), np.dtype(binding.dtype), self._memory, self._index)

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """A launch of the graph on these buffers; dims are theirs already."""
        parts = parts_of(graph, dims, self._sessions.threads) if self.device == CPU else 1
        session = self._sessions.get(graph, parts)
        mine, *others = [self._bound(session, graph, buffers, part, parts) for part in range(parts)]

        def launch() -> None:
            running = [self._workers.submit(session.run_with_iobinding, bound) for bound in others]
            try:
                session.run_with_iobinding(mine)
                for future in running:
                    future.result()
            except Exception as error:  # the binding raises many types of its own
                raise ExecutionFailed(
                    f"onnxruntime, graph '{graph.name}'", actual=str(error), allowed="a run without error",
                    remedy="Try a smaller batch or size; if it stays, report it with `zturbo doctor --json`.",
                ) from error  # fmt: skip
            finally:
                wait(running)

        return launch

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """One after another."""
        return in_order(launches)

    def row_counts(self, height: int, width: int, tokens: int) -> range:  # noqa: ARG002
        """The same at every size and length."""
        return range(1, MAX_ROWS + 1)

    def mark(self) -> Callable[[], None]:
        """Nothing to wait for: a run returns when it is done."""
        return done

    def close(self) -> None:
        """Drop the sessions."""
        self._workers.shutdown()
        self._sessions.clear()

    def _bound(self, session: Any, graph: Graph, buffers: Mapping[str, Buffer], part: int, parts: int) -> Any:
        """One part's IOBinding."""
        bound = session.io_binding()
        for bindings, bind in ((graph.inputs, bound.bind_ortvalue_input), (graph.outputs, bound.bind_ortvalue_output)):
            for binding in bindings:
                bind(binding.name, cast("OrtBuffer", buffers[binding.name]).part(self._ort, part, parts))
        return bound


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
    """Sessions for every graph that a picture needs, the others' when they first run; each file's hash checked first.

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
    settings = [(provider, {"device_id": str(index)})] if provider in NUMBERED else [provider]
    graphs = bundle.graphs(precision)
    threads = physical_cores() if options.threads is None else options.threads
    sessions = Sessions(threads, lambda graph, own: _session(ort, verified_graph(folder, bundle, graph), settings, own))
    for graph in graphs:  # what cannot be loaded is told now; a guided picture is two rows
        if not graph.optional:
            sessions.get(graph, parts_of(graph, {"rows": 2, "samples": 1}, threads) if provider == CPU else 1)
    return OnnxRuntimeBackend(ort, sessions, provider, index, precision)


def _session(ort: Any, path: Path, providers: list[Any], threads: int) -> Any:
    """One session. Its threads spin while it runs and sleep when it does not: five sessions share the cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the binding raises many types of its own
        raise BackendUnavailable(
            "backend onnxruntime", actual=f"{path.name} was refused ({error})", allowed="a graph it can load",
            remedy="Update onnxruntime, or take another --device.",
        ) from error  # fmt: skip
    asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != asked:  # it goes on without a provider whose libraries do not load
        raise BackendUnavailable(
            "backend onnxruntime", actual=f"{session.get_providers()[0]} in place of {asked}", allowed=asked,
            remedy=f"Install what {asked} needs, or pass --device cpu.",
        )  # fmt: skip
    return session


def _provider(ort: Any, device: str | None) -> tuple[str, int]:
    """(provider, device index) of `cpu`, `cuda`, `cuda:1` or a provider's own name."""
    word, _, number = ("cpu" if device is None else device).partition(":")
    known = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    provider = known.get(word.removesuffix("ExecutionProvider").lower())
    if provider is None or (number and not (number.isdecimal() and provider in NUMBERED)):
        if provider is None and word.lower() in ("cuda", "tensorrt", "dml", "openvino", "rocm", "coreml"):
            raise BackendUnavailable(
                "backend onnxruntime", actual=f"no provider for '{device}'", allowed=", ".join(known), remedy=REMEDY
            )
        raise OptionInvalid("device", actual=repr(device), allowed=", ".join(known), remedy="Add :N for the N-th one.")
    return provider, int(number or 0)


def _precision(bundle: Bundle, options: BackendOptions, provider: str) -> Precision:
    """What was asked, else fp32 on the CPU and fp16 elsewhere, else what the bundle has."""
    if options.precision is not None:
        return asked_variant("onnxruntime", options.precision)
    wanted: Precision = "fp32" if provider == CPU else "fp16"
    return wanted if wanted in bundle.variants else next(iter(bundle.variants))
