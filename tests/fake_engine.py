"""Engines and execution contexts of the fake TensorRT: a plan is ONNX, a launch computes on the host at once.

Each flavour's classes have the names that the real one has and lack those that it lacks.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import weakref
from typing import Any

import numpy as np
import onnx

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "UINT8": np.uint8}
DataType = enum.Enum("DataType", [*NUMPY, "INT8", "BOOL"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every engine and execution context that nobody has dropped."""


def evaluator(model: onnx.ModelProto) -> Any:
    """Something with run(names, feeds)."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def dims_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The sizes in a graph, -1 for those that are not constant."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


class Engine:
    """What 8.6 offers; later ones take away and add."""

    device_memory_size = property(lambda self: self.scratch_bytes)

    def __init__(self, raw: bytes) -> None:
        ALIVE.add(self)
        head, _, body = raw.partition(b"\n")
        self.head, self.model = json.loads(head), onnx.load_model_from_string(body)
        self.tensors = [*self.model.graph.input, *self.model.graph.output]
        self.session = evaluator(self.model)
        self.contexts = 0
        self.scratch_bytes = self.head.get("scratch_bytes", 4096)

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in {v.name for v in self.model.graph.input} else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(dims_of(value) for value in self.tensors if value.name == name)

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.head["types"][name]]

    def _context(self, kind: type[Context]) -> Context:
        self.contexts += 1
        return kind(self)


class Engine86(Engine):
    def create_execution_context_without_device_memory(self) -> Any:
        assert self.head["sharing"] or self.contexts == 0, "one context for each profile"
        return self._context(Context86)


class Engine10(Engine):
    device_memory_size_v2 = property(lambda self: self.scratch_bytes)

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy.name == "USER_MANAGED"
        return self._context(Context10)


class Engine11(Engine10):
    @property
    def device_memory_size(self) -> int:
        raise AttributeError("device_memory_size is gone")


class EngineRtx(Engine11):
    def create_runtime_config(self) -> Any:
        return RuntimeConfig()

    def create_execution_context(self, config: Any) -> Any:
        assert isinstance(config, RuntimeConfig)
        assert config.strategy.name == "USER_MANAGED"
        return self._context(Context10)


class RuntimeConfig:
    strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Context:
    """An execution context: shapes within the profile, addresses, and a launch that computes at once."""

    def __init__(self, engine: Engine) -> None:
        ALIVE.add(self)
        self.engine, self.addresses = engine, dict[str, int]()
        dims = {value.name: dims_of(value) for value in engine.model.graph.input}
        self.shapes = {name: sizes for name, sizes in dims.items() if -1 not in sizes}
        self.scratch = 0
        self.profile: int | None = None
        self.refuses = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < len(self.engine.head["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        low, _, high = self.engine.head["profiles"][self.profile][name]
        fits = len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            inputs = {value.name for value in self.engine.model.graph.input}
            self.shapes = {k: v for k, v in self.shapes.items() if k in inputs} | {name: tuple(shape)}
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Outputs by running the graph on zeros: the honest way, and fast enough here."""
        if name not in self.shapes:
            zeros = {key: np.zeros(shape, self._numpy(key)) for key, shape in self.shapes.items()}
            names = [value.name for value in self.engine.model.graph.output]
            self.shapes |= {k: v.shape for k, v in zip(names, self.engine.session.run(names, zeros), strict=True)}
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 16 == 0

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue a run on the addresses as they are now: a captured one goes on using these."""
        if self.refuses:
            return False
        cuda = sys.modules["cuda.bindings.runtime"]
        views = {value.name: self._view(value.name) for value in self.engine.tensors}
        scratch = self.scratch

        def run() -> None:
            assert len(cuda.memory[scratch]) >= self.engine.scratch_bytes, "scratch that was freed, or too little"
            outputs = [value.name for value in self.engine.model.graph.output]
            feeds = {value.name: views[value.name].copy() for value in self.engine.model.graph.input}
            for name, array in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
                views[name][...] = array

        return cuda.enqueue(stream, run)

    def _numpy(self, name: str) -> Any:
        return NUMPY[self.engine.head["types"][name]]

    def _view(self, name: str) -> Any:
        shape, dtype = self.shapes[name], np.dtype(self._numpy(name))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)


class Context86(Context):
    @property
    def device_memory(self) -> int:
        return self.scratch

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self.scratch = address


class Context10(Context):
    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.scratch_bytes
        self.scratch = address


ENGINES = {"8.6": Engine86, "10": Engine10, "11": Engine11, "rtx": EngineRtx}
