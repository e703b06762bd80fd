"""Engines that run one after another on one stream, their execution contexts, and the scratch they share.

Plans come in as verified bytes (engine/plan.py). Knows neither bundles nor profiles' texts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from engine.device import Device, DeviceTensor, run_all
from engine.dialect import Dialect, Log
from engine.errors import ExecutionFailed


class Engines:
    """The engines of one profile: {graph: engine}, with one scratch as large as the largest needs."""

    def __init__(self, dialect: Dialect, device: Device, plans: Iterable[tuple[str, bytes]]) -> None:
        """Deserialize plans one at a time, so that two need never be in host memory. Raises ExecutionFailed."""
        self._dialect, self._device = dialect, device
        self._log = Log()
        self._logger = dialect.logger(self._log)
        device.use()
        self._runtime = self._made_runtime()
        self._engines = {name: self._deserialized(name, raw) for name, raw in plans}
        self._idle: dict[str, list[Any]] = {name: [] for name in self._engines}
        self.scratch_bytes = max(map(dialect.scratch_bytes, self._engines.values()), default=0)
        self._scratch = device.reserve(self.scratch_bytes)

    def bind(self, name: str, tensors: Mapping[str, DeviceTensor]) -> BoundEngine:
        """A launch of one engine on these tensors, by binding name; several of one engine may live side by side.

        Its execution context is taken over by a later `bind` once it is dropped. Raises ExecutionFailed where
        TensorRT refuses a shape or an address.
        """
        self._device.use()
        engine, idle = self._engines[name], self._idle[name]
        if idle:
            self._device.synchronize()  # its last launch may still run
            context = idle.pop()
        else:
            context = self._context(engine)
        bound = BoundEngine(self, name, context, self._device, tensors)
        weakref.finalize(bound, idle.append, context).atexit = False
        self._connect(name, engine, context, tensors)
        return bound

    def failed(self, name: str, problem: str) -> ExecutionFailed:
        """What TensorRT refused, in its own words."""
        lines = "; ".join([problem, *self._log.errors[-3:]])
        subject = f"{self._dialect.flavour.title} {self._dialect.version}, engine '{name}'"
        remedy = "Build the plans again; report it where that does not help."
        return ExecutionFailed(subject, actual=lines, allowed="a call that TensorRT accepts", remedy=remedy)

    def close(self) -> None:
        """Wait for the stream, then drop execution contexts and engines and free the scratch; no launch may follow.

        Raises the first ExecutionFailed, once all is dropped.
        """
        run_all([self._device.synchronize, self._drop, lambda: self._device.release(self._scratch)])

    def _drop(self) -> None:
        for idle in self._idle.values():
            idle.clear()
        self._idle.clear()
        self._engines.clear()
        self._runtime = None

    def _made_runtime(self) -> Any:
        try:
            return self._dialect.trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind's word for a null pointer, as where CUDA does not start
            raise self.failed("all", f"no runtime ({error})") from error

    def _deserialized(self, name: str, raw: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(raw)
        if engine is None:
            raise self.failed(name, "a plan that does not deserialize")
        return engine

    def _context(self, engine: Any) -> Any:
        context = self._dialect.execution_context(engine)
        self._dialect.give_scratch(context, self._scratch, self.scratch_bytes)
        return context

    def _connect(self, name: str, engine: Any, context: Any, tensors: Mapping[str, DeviceTensor]) -> None:
        """Give an execution context its profile, the inputs' shapes and every address."""
        if not context.set_optimization_profile_async(0, int(self._device.stream)):
            raise self.failed(name, "optimization profile 0 was refused")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == self._dialect.trt.TensorIOMode.INPUT]
        for wire in inputs:
            if not context.set_input_shape(wire, tensors[wire].shape):
                raise self.failed(name, f"input '{wire}' of shape {tensors[wire].shape} was refused")
        for wire in names:
            self._check(name, wire, engine, tuple(context.get_tensor_shape(wire)), tensors[wire])
            if not context.set_tensor_address(wire, tensors[wire].address):
                raise self.failed(name, f"the address of '{wire}' was refused")

    def _check(self, name: str, wire: str, engine: Any, shape: tuple[int, ...], tensor: DeviceTensor) -> None:
        """TensorRT writes where it is told to: a tensor must be exactly what the engine takes it for."""
        dtype = self._dialect.dtype(engine.get_tensor_dtype(wire))
        if (shape, dtype) != (tensor.shape, tensor.dtype.name):
            raise self.failed(name, f"'{wire}' is {dtype} {shape}, bound to {tensor.dtype.name} {tensor.shape}")


class BoundEngine:
    """An execution context with its shapes and addresses set; calling it launches. Keeps its tensors alive."""

    __slots__ = ("__weakref__", "_device", "_engines", "_execute", "_name", "_stream", "_tensors")

    def __init__(
        self, engines: Engines, name: str, context: Any, device: Device, tensors: Mapping[str, DeviceTensor]
    ) -> None:
        self._engines, self._name, self._device, self._tensors = engines, name, device, dict(tensors)
        self._execute, self._stream = context.execute_async_v3, int(device.stream)

    def __call__(self) -> None:
        """Launch; the work may still run when this returns. Raises ExecutionFailed."""
        self._device.use()
        if not self._execute(self._stream):
            raise self._engines.failed(self._name, "execute_async_v3 returned false")
