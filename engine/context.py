"""Engines that run one after another on one stream, and their execution contexts.

Plans come in as verified bytes (engine/plan.py), a graph's in one part or in several. Knows neither bundles nor
profiles' texts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from engine.arena import Arena
from engine.cuda import run_all
from engine.device import Device, DeviceTensor
from engine.dialect import Dialect, Log
from engine.errors import ExecutionFailed
from engine.plan import Part

Crossing = tuple[str, str, tuple[int, ...], str]
"""Graph, tensor, shape and dtype of what one part hands to a later one."""


class Engine:
    """One deserialized plan, and its execution contexts: all that were made, and those that are free to take.

    name: as messages have it, `denoiser 2/7`. inputs, outputs: {name: dtype}.
    """

    __slots__ = ("contexts", "engine", "graph", "idle", "inputs", "name", "outputs")

    def __init__(self, dialect: Dialect, graph: str, name: str, engine: Any) -> None:
        self.graph, self.name, self.engine = graph, name, engine
        self.contexts: list[Any] = []
        self.idle: list[Any] = []
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        types = {wire: dialect.dtype(engine.get_tensor_dtype(wire)) for wire in names}
        kind = dialect.trt.TensorIOMode.INPUT
        self.inputs = {wire: types[wire] for wire in names if engine.get_tensor_mode(wire) == kind}
        self.outputs = {wire: types[wire] for wire in names if wire not in self.inputs}


class Engines:
    """The engines of one set of plans: {graph: its parts in order}. arena: their scratch, which others may share."""

    def __init__(
        self, dialect: Dialect, device: Device, plans: Iterable[tuple[str, Part, bytes]], arena: Arena | None = None
    ) -> None:
        """Deserialize plans one at a time, so that two need never be in host memory. Raises ExecutionFailed.

        arena: None for one of their own.
        """
        self._dialect, self._device = dialect, device
        self._log = Log()
        self._logger = dialect.logger(self._log)
        device.use()
        self._runtime = self._made_runtime()
        self._chains: dict[str, list[Engine]] = {}
        for graph, (index, count), raw in plans:
            name = graph if count == 1 else f"{graph} {index}/{count}"
            self._chains.setdefault(graph, []).append(self._deserialized(graph, name, raw))
        self._bound: weakref.WeakSet[Bound] = weakref.WeakSet()
        self._crossing: weakref.WeakValueDictionary[Crossing, DeviceTensor] = weakref.WeakValueDictionary()
        self.scratch_bytes = max((dialect.scratch_bytes(one.engine) for one in self._all()), default=0)
        self._arena = Arena(device) if arena is None else arena
        self._own = [self._arena] if arena is None else []
        self._arena.join(self.scratch_bytes, self._lend)

    def bind(self, graph: str, tensors: Mapping[str, DeviceTensor], profile: int = 0) -> Bound:
        """A launch of a graph's parts in order on these tensors, by name; several of one graph may live side by side.

        profile: the index of the optimization profile that covers their shapes. What one part hands to the next is
        allocated here, once for all that are bound to equal shapes: each launch writes it before it reads it. The
        execution contexts are taken over by a later `bind` once this one is dropped. Raises ExecutionFailed where
        TensorRT refuses a shape or an address.
        """
        self._device.use()
        chain = self._chains[graph]
        if any(engine.idle for engine in chain):
            self._device.synchronize()  # the last launch of an idle one may still run
        contexts = [engine.idle.pop() if engine.idle else self._made_context(engine) for engine in chain]
        bound = Bound(self, [engine.name for engine in chain], contexts, self._device)
        self._bound.add(bound)
        for engine, context in zip(chain, contexts, strict=True):
            bound.give_back_to(engine.idle, context)
        for engine, context in zip(chain, contexts, strict=True):
            self._connect(engine, context, {**tensors, **bound.tensors}, profile, bound.tensors)
        return bound

    def failed(self, name: str, problem: str) -> ExecutionFailed:
        """What TensorRT refused, in its own words."""
        lines = "; ".join([problem, *self._log.errors[-3:]])
        subject = f"{self._dialect.flavour.title} {self._dialect.version}, engine '{name}'"
        remedy = "Build the plans again; report it where that does not help."
        return ExecutionFailed(subject, actual=lines, allowed="a call that TensorRT accepts", remedy=remedy)

    def close(self) -> None:
        """Wait for the stream, then drop execution contexts and engines, and the scratch where it is their own.

        Who still holds a `bind`'s launch holds nothing on the GPU by it; to call it is an error. Raises the first
        ExecutionFailed, once all is dropped.
        """
        run_all([self._device.synchronize, self._drop, *(arena.close for arena in self._own)])

    def _drop(self) -> None:
        self._arena.leave(self._lend)
        for bound in list(self._bound):
            bound.release()
        for engine in self._all():
            engine.idle.clear()
            engine.contexts.clear()
        self._chains.clear()
        self._runtime = None

    def _all(self) -> list[Engine]:
        return [engine for chain in self._chains.values() for engine in chain]

    def _made_runtime(self) -> Any:
        try:
            return self._dialect.trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind's word for a null pointer, as where CUDA does not start
            raise self.failed("all", f"no runtime ({error})") from error

    def _deserialized(self, graph: str, name: str, raw: bytes) -> Engine:
        engine = self._runtime.deserialize_cuda_engine(raw)
        if engine is None:
            raise self.failed(name, "a plan that does not deserialize")
        return Engine(self._dialect, graph, name, engine)

    def _made_context(self, engine: Engine) -> Any:
        context = self._dialect.execution_context(engine.engine)
        engine.contexts.append(context)
        self._dialect.give_scratch(context, self._arena.address, self._arena.size_bytes)
        return context

    def _lend(self, address: int, size_bytes: int) -> None:
        """Where the scratch is from now on."""
        for engine in self._all():
            for context in engine.contexts:
                self._dialect.give_scratch(context, address, size_bytes)

    def _connect(
        self, engine: Engine, context: Any, wires: dict[str, DeviceTensor], profile: int, used: dict[str, DeviceTensor]
    ) -> None:
        """Give an execution context its profile, the inputs' shapes and every address; used: all that has one."""
        if not context.set_optimization_profile_async(profile, int(self._device.stream)):
            raise self.failed(engine.name, f"optimization profile {profile} was refused")
        for wire in engine.inputs:
            if wire not in wires:
                raise self.failed(engine.name, f"nothing feeds input '{wire}'")
            shape = wires[wire].shape
            constant = tuple(engine.engine.get_tensor_shape(wire)) == shape  # of the graph: there is nothing to set
            if not constant and not context.set_input_shape(wire, shape):
                raise self.failed(engine.name, f"input '{wire}' of shape {shape} was refused")
        for wire, dtype in {**engine.inputs, **engine.outputs}.items():
            shape = tuple(context.get_tensor_shape(wire))
            tensor = wires[wire] if wire in wires else self._crossed(engine, wire, shape, dtype)
            if (shape, dtype) != (tensor.shape, tensor.dtype.name):  # TensorRT writes where it is told to
                bound_to = f"{tensor.dtype.name} {tensor.shape}"
                raise self.failed(engine.name, f"'{wire}' is {dtype} {shape}, bound to {bound_to}")
            if not context.set_tensor_address(wire, tensor.address):
                raise self.failed(engine.name, f"the address of '{wire}' was refused")
            used[wire] = tensor

    def _crossed(self, engine: Engine, wire: str, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """The tensor in which a part leaves an output for later ones."""
        key = engine.graph, wire, shape, dtype
        tensor = self._crossing.get(key)
        if tensor is None:
            try:
                tensor = self._device.tensor(shape, dtype)
            except (TypeError, ValueError) as error:
                raise self.failed(engine.name, f"output '{wire}' is {dtype} {shape}, which cannot be held") from error
            self._crossing[key] = tensor
        return tensor


class Bound:
    """Execution contexts with their shapes and addresses set; calling it launches them in turn.

    tensors: all that they read and write, kept alive. contexts: in order.
    """

    __slots__ = ("__weakref__", "_device", "_engines", "_execute", "_returns", "_stream", "contexts", "tensors")

    def __init__(self, engines: Engines, names: list[str], contexts: list[Any], device: Device) -> None:
        self._engines, self._device, self._stream = engines, device, int(device.stream)
        self.contexts, self.tensors = tuple(contexts), dict[str, DeviceTensor]()
        self._returns: list[weakref.finalize[..., Bound]] = []
        self._execute = [(name, one.execute_async_v3) for name, one in zip(names, contexts, strict=True)]

    def give_back_to(self, idle: list[Any], context: Any) -> None:
        """Leave a context there once this is dropped."""
        returned = weakref.finalize(self, idle.append, context)
        returned.atexit = False
        self._returns.append(returned)

    def release(self) -> None:
        """Let go of contexts and tensors, whoever still holds this."""
        for returned in self._returns:
            returned.detach()
        self._returns.clear()
        self._execute.clear()
        self.contexts = ()
        self.tensors.clear()

    def __call__(self) -> None:
        """Launch; the work may still run when this returns. Raises ExecutionFailed, also after close()."""
        self._device.use()
        if not self._execute:
            raise self._engines.failed("all", "a launch after close")
        for name, execute in self._execute:
            if not execute(self._stream):
                raise self._engines.failed(name, "execute_async_v3 returned false")
