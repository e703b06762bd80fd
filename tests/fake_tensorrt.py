"""TensorRT in a few hundred lines of Python: the flavours' different names, plans that are ONNX, runs on the host.

`fake("8.6")`, `fake("10")`, `fake("11")` and `fake("rtx")` have the attributes that the real ones have and lack those
that they lack. A plan is the graph with its profiles; a launch runs it in onnx's reference evaluator, or ONNX Runtime
where there is one, on the addresses it was given.
"""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from tests.fake_build import Config, Inspector, Profile, TimingCache, text_of
from tests.fake_engine import ENGINES, NUMPY, DataType, Engine, TensorIOMode

VERSIONS = {"8.6": "8.6.0", "10": "10.13.0.35", "11": "11.4.0.106", "rtx": "1.7.1.116"}
KINDS = {"Mul": "ELEMENTWISE", "Add": "ELEMENTWISE", "Sin": "UNARY", "LayerNormalization": "NORMALIZATION"}

LayerType = enum.Enum("LayerType", ["ELEMENTWISE", "UNARY", "NORMALIZATION", "SHUFFLE", "CAST"])


class ILogger:
    """The base that TensorRT's loggers have."""

    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)


def dtype_of(value: onnx.ValueInfoProto) -> DataType:
    found = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return next(DataType[name] for name, dtype in NUMPY.items() if dtype == found)


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name, self.dtype = value.name, dtype_of(value)
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


class Layer:
    def __init__(self, node: onnx.NodeProto) -> None:
        self.type = LayerType[KINDS.get(node.op_type, "SHUFFLE")]
        self.output = type("Output", (), {"name": node.output[0]})()
        self.precision: Any = None
        self.output_type: Any = None

    def get_output(self, index: int) -> Any:
        return self.output

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_type = dtype


class Network:
    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class Builder:
    module: Any = None

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network | None:
        names = self.module.NetworkDefinitionCreationFlag
        return Network() if flags in {1 << member.value for member in names} else None

    def create_builder_config(self) -> Config:
        return Config(self.module)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        module, made = self.module, ({"PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS"} & set(config.flags))
        if module.refused and module.refused <= set(config.flags or ["no flags"]):
            self.logger.log(ILogger.Severity.ERROR, f"refused with {config.flags}")
            return None
        held = [layer.output.name for layer in network.layers if layer.precision == DataType.FLOAT and made]
        assert network.model is not None
        lacking = {node.op_type for node in network.model.graph.node if node.output[0] not in held} & module.no_kernel
        if lacking:
            self.logger.log(ILogger.Severity.ERROR, f"Could not find any implementation for {lacking}")
            return None
        if config.timings is not None and "poison" in config.timings.timed:
            self.logger.log(ILogger.Severity.ERROR, "Myelin error from unknown graph")
            return None
        if config.timings is not None:
            config.timings.timed |= {node.output[0] for node in network.model.graph.node}
        self._tell(network.model, config)
        head = {
            "version": module.__version__, "flags": config.flags, "profiles": config.profiles, "held": held,
            "sharing": config.sharing, "capabilities": [config.capabilities[i] for i in sorted(config.capabilities)],
            "types": {tensor.name: tensor.dtype.name for tensor in network.inputs + network.outputs},
            "cleared": config.cleared, "level": config.builder_optimization_level, "pools": config.pools,
        }  # fmt: skip
        return json.dumps(head).encode() + b"\n" + network.model.SerializeToString()

    def _tell(self, model: onnx.ModelProto, config: Config) -> None:
        """What RTX writes of a finished build; each optimization profile has layers of its own."""
        log, level = self.logger.log, ILogger.Severity
        lines = []
        for k in range(len(config.profiles)):
            log(level.INFO, f"Total Activation Memory: {1000 * (k + 1)} bytes")
            lines += [text_of(node, place, k) for place, node in enumerate(model.graph.node)]
        if hasattr(self.module, "ComputeCapability") and config.profiling_verbosity.name == "DETAILED":
            log(level.VERBOSE, "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: any, DataType: Half")


class ParserError:
    def __init__(self, text: str) -> None:
        self.text = text

    def desc(self) -> str:
        return self.text


class OnnxParser:
    module: Any = None

    def __init__(self, network: Network, logger: Any) -> None:
        self.network, self.errors = network, list[ParserError]()

    num_errors = property(lambda self: len(self.errors))

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse(self, raw: bytes, path: str) -> bool:
        try:
            model = onnx.load_model_from_string(raw)
        except Exception as error:  # noqa: BLE001  # protobuf's own type
            self.errors.append(ParserError(str(error)))
            return False
        plugins = [node for node in model.graph.node if node.op_type == "InstanceNormalization"]
        if plugins and not hasattr(self.module, "OnnxParserFlag"):
            self.errors.append(ParserError("InstanceNormalization: plugin not found"))
            return False
        onnx.load_external_data_for_model(model, str(Path(path).parent))
        self.network.model = model
        self.network.inputs = [Tensor(value) for value in model.graph.input]
        self.network.outputs = [Tensor(value) for value in model.graph.output]
        self.network.layers = [Layer(node) for node in model.graph.node]
        return True


def fake(kind: str) -> Any:
    """A module of one flavour; it builds nothing with the builder flags in its `refused` ({"no flags"}: with none)."""
    module: Any = ModuleType("tensorrt_rtx" if kind == "rtx" else "tensorrt")
    module.__version__, module.refused, module.no_kernel = VERSIONS[kind], set(), set()
    module.ILogger, module.DataType, module.LayerType, module.TensorIOMode = ILogger, DataType, LayerType, TensorIOMode
    flags = {"8.6": ["EXPLICIT_BATCH"], "10": ["EXPLICIT_BATCH", "STRONGLY_TYPED"]}.get(kind, ["STRONGLY_TYPED"])
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    constraints = ["FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]
    module.BuilderFlag = enum.Enum("BuilderFlag", ["TF32", *(constraints if kind == "8.6" else [])])
    module.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
    module.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    module.ITimingCache = TimingCache
    if kind == "8.6":
        module.PreviewFeature = enum.Enum("PreviewFeature", ["PROFILE_SHARING_0806"])
    else:
        module.DataType = type("DataType", (), {**DataType.__members__, "BF16": object()})
        module.OnnxParserFlag = enum.Enum("OnnxParserFlag", ["NATIVE_INSTANCENORM"])
        module.ExecutionContextAllocationStrategy = enum.Enum("Strategy", ["STATIC", "USER_MANAGED"])
    if kind == "rtx":
        module.ComputeCapability = enum.Enum("ComputeCapability", ["NONE", "CURRENT", "SM86", "SM89", "SM120"])
    module.Builder = type("Builder", (Builder,), {"module": module})
    module.OnnxParser = type("OnnxParser", (OnnxParser,), {"module": module})
    engine = type("Engine", (_Inspected, ENGINES[kind]), {})
    module.Runtime = type("Runtime", (_Runtime,), {"engine": engine, "version": VERSIONS[kind]})
    return module


class _Inspected:
    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)


class _Runtime:
    engine: type[Engine] = Engine
    version = ""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, raw: bytes) -> Engine | None:
        try:
            found = self.engine(bytes(raw))
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion failed")
            return None
        return found if found.head["version"] == self.version else None


def install(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    """Make it what `import tensorrt` (or tensorrt_rtx) gives, for one test."""
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module
