"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX, in one place.

A flavour is a module and how one gets it; a dialect is what the module that is installed can do, found by looking
for its attributes and never by its version number. Importing this file imports no TensorRT. Names of TensorRT
that vary between versions occur here and nowhere else, which is why the file is long.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.binding import DType, PlanPrecision
from engine.errors import BackendUnavailable, ExecutionFailed
from engine.plan import Options

_DTYPES: dict[str, DType] = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "UINT8": "uint8"}
_HELD = (
    "ACTIVATION", "CONCATENATION", "CONVOLUTION", "ELEMENTWISE", "GATHER", "MATRIX_MULTIPLY", "NORMALIZATION", "REDUCE",
    "SCALE", "SHUFFLE", "SLICE", "SOFTMAX", "UNARY",
)  # fmt: skip
"""The kinds of layer that can be held in fp32. Those that only move values are among them: a value that is moved in
fp16 is rounded to it, 949.05 to 949."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One kind of TensorRT.

    name: also the first word of its targets, and its backend. module: what is imported. extra: of the package zturbo.
    portable: a plan is built for a list of compute capabilities, without a GPU, instead of for the GPU at hand.
    """

    name: str
    title: str
    module: str
    extra: str
    portable: bool


FLAVOURS: dict[str, Flavour] = {
    flavour.name: flavour
    for flavour in (
        Flavour(name="tensorrt", title="TensorRT", module="tensorrt", extra="tensorrt", portable=False),
        Flavour(name="tensorrt_rtx", title="TensorRT-RTX", module="tensorrt_rtx", extra="rtx", portable=True),
    )
}


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to ask for a precision: builder flags, and whether layers of the graph's fp32 tensors stay in fp32.

    cleared: flags that are set by default, and are not where fp32 means fp32: TF32 keeps 10 bits of 23. widened: for
    graphs outside the loop alone, an fp16 graph computes in fp32 between its inputs and outputs. fixed: axes that have
    one size in all profiles are constants of the graph.
    """

    name: str
    flags: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    hold_fp32: bool = False
    widened: bool = False
    fixed: bool = False


@dataclass(slots=True)
class Log:
    """The lines that TensorRT wrote, by how bad they are.

    sink: what is given each message below a warning; None of these is kept, for a build writes megabytes of them.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sink: Callable[[str], None] | None = None


class Dialect:
    """One installed TensorRT, spoken to in the same words whatever its version."""

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.flavour = flavour
        self.trt = module
        self.version = str(module.__version__)
        kinds = module.DataType
        self._types = {getattr(kinds, name): word for name, word in _DTYPES.items() if hasattr(kinds, name)}

    # What it can do.

    @property
    def strongly_typed(self) -> bool:
        """Whether layers keep the types of the graph (10 and later, RTX); 8.6 chooses between those its flags allow."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def instance_norm_needs_plugin(self) -> bool:
        """Whether InstanceNormalization exists as a plugin only (8.6, whose parser has no flags at all)."""
        return not hasattr(self.trt, "OnnxParserFlag")

    @property
    def layer_norm_is_wrong_in_fp16(self) -> bool:
        """Whether a text encoder's LayerNormalizations must compute in fp32.

        8.6.0 on an H100, level 3: four layers of SDXL's second encoder (1280 wide) are off by 0.37, with their norms in
        fp32 by 0.0003, built in 88 s and not 115; at level 0 they are right too. A first encoder (768) and UNets are
        right in fp16.
        """
        return not self.strongly_typed

    def compute_capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that a portable flavour builds for (`8.6`), ascending; none for the others."""
        members = dir(self.trt.ComputeCapability) if self.flavour.portable else []
        numbers = sorted(int(name[2:]) for name in members if name.startswith("SM") and name[2:].isdecimal())
        return tuple(f"{number // 10}.{number % 10}" for number in numbers)

    def precisions(self, capabilities: tuple[str, ...] = ()) -> tuple[PlanPrecision, ...]:
        """What plans can be built in, for all of these compute capabilities where some are given.

        bf16 needs layers that keep the graph's types, and a GPU of 8.0 or later.
        """
        old = any(tuple(map(int, capability.split("."))) < (8, 0) for capability in capabilities)
        bf16 = self.strongly_typed and hasattr(self.trt.DataType, "BF16") and not old
        return ("fp16", "bf16", "fp32") if bf16 else ("fp16", "fp32")

    @property
    def options_matter(self) -> bool:
        """Whether level and workspace change a plan: not where kernels are chosen on the GPU that runs them.

        RTX 1.7 wrote the same bytes at every level.
        """
        return not self.flavour.portable

    @property
    def has_timing_cache(self) -> bool:
        """Whether a build times kernels and can keep what it timed."""
        return not self.flavour.portable and hasattr(self.trt, "ITimingCache")

    def modes(self, precision: PlanPrecision) -> tuple[Mode, ...]:
        """The ways to build a graph of this precision, best first; a later one is for where TensorRT refuses it.

        8.6 may run any layer in fp16 once its FP16 flag is set, which ruins sin(999·f) and the solver's sums, so the
        layers of an fp16 graph's fp32 islands are held. An fp32 graph is built without the flag. (8.6.0 on an H100
        built all of emoji in the first mode; a part of SDXL's second text encoder has no implementation in either.)
        Axes that have one size are fixed: 8.6 lacks kernels for some norms behind a dynamic axis (NVIDIA/TensorRT issue
        3490). The second mode leaves them, where that should be the worse.
        """
        strict = ("TF32",) if precision == "fp32" and hasattr(self.trt.BuilderFlag, "TF32") else ()
        if self.strongly_typed:
            return (Mode("strongly typed", cleared=strict),)
        if precision == "fp32":
            return (Mode("fp32", cleared=strict),)
        held = Mode("fp16, fp32 islands held", ("FP16", "OBEY_PRECISION_CONSTRAINTS"), hold_fp32=True, fixed=True)
        preferred = Mode("fp16, fp32 islands preferred", ("FP16", "PREFER_PRECISION_CONSTRAINTS"), hold_fp32=True)
        return held, preferred, Mode("fp16 computed in fp32", held.flags, hold_fp32=True, widened=True, fixed=True)

    # Building.

    def logger(self, log: Log) -> Any:
        """A logger that writes to log; TensorRT needs it for as long as anything made with it lives."""
        severity = self.trt.ILogger.Severity

        class _Logger(self.trt.ILogger):  # type: ignore[misc, name-defined]  # the module is imported at run time
            def __init__(self) -> None:
                super().__init__()

            def log(self, level: Any, message: str) -> None:
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    log.errors.append(message.strip())
                elif level == severity.WARNING:
                    log.warnings.append(message.strip())
                elif log.sink is not None:
                    log.sink(message)

        return _Logger()

    def network(self, builder: Any) -> Any:
        """An empty network with an explicit batch, strongly typed where that exists."""
        flags = self.trt.NetworkDefinitionCreationFlag
        names = [name for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(flags, name)]
        return builder.create_network(1 << int(getattr(flags, names[0])) if names else 0)

    def configure(self, config: Any, mode: Mode, capabilities: tuple[str, ...], options: Options) -> None:
        """Set a mode's flags, the options, and a portable flavour's compute capabilities.

        The build is told to describe its layers, for engine/buildlog.py; RTX 1.7's plan is no larger for it. Raises
        ValueError for a compute capability that the flavour lacks.
        """
        for name in mode.flags:
            config.set_flag(getattr(self.trt.BuilderFlag, name))
        for name in mode.cleared:
            config.clear_flag(getattr(self.trt.BuilderFlag, name))
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        sharing = getattr(getattr(self.trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
        if sharing is not None:  # several execution contexts on one profile: the default from 10 on
            config.set_preview_feature(sharing, True)
        if options.level is not None:
            config.builder_optimization_level = options.level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if self.flavour.portable:
            self._set_capabilities(config, capabilities)

    def _set_capabilities(self, config: Any, capabilities: tuple[str, ...]) -> None:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(self.trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if member is None or not config.set_compute_capability(member, index):
                raise ValueError(f"{self.flavour.title} {self.version} does not build for {capability}")

    def hold_fp32(self, network: Any, names: frozenset[str]) -> None:
        """Hold the layers that compute the named tensors in fp32."""
        kinds = {getattr(self.trt.LayerType, name) for name in _HELD if hasattr(self.trt.LayerType, name)}
        for layer in (network.get_layer(index) for index in range(network.num_layers)):
            if layer.type in kinds and layer.get_output(0).name in names:
                layer.precision = self.trt.DataType.FLOAT
                layer.set_output_type(0, self.trt.DataType.FLOAT)

    def set_type(self, tensor: Any, dtype: str) -> bool:
        """Give a network's input or output the dtype; False where the graph's own types forbid it."""
        kinds = [kind for kind, word in self._types.items() if word == dtype]
        if self.dtype(tensor.dtype) != dtype and kinds and not self.strongly_typed:
            tensor.dtype = kinds[0]
        return self.dtype(tensor.dtype) == dtype

    def dtype(self, kind: Any) -> str:
        """A DataType as one of our words, or as TensorRT's own where we have none."""
        return self._types.get(kind, str(kind))

    # Running.

    def scratch_bytes(self, engine: Any) -> int:
        """What an execution context of the engine needs beside its inputs and outputs, in bytes."""
        name = next(name for name in ("device_memory_size_v2", "device_memory_size") if hasattr(engine, name))
        return int(getattr(engine, name))

    def execution_context(self, engine: Any) -> Any:
        """An execution context whose scratch is ours to give. Raises ExecutionFailed."""
        if hasattr(engine, "create_runtime_config"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            context = engine.create_execution_context(config)
        elif hasattr(self.trt, "ExecutionContextAllocationStrategy"):
            context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise ExecutionFailed(
                f"{self.flavour.title} {self.version}", actual="no execution context", allowed="one per bound graph",
                remedy="Free GPU memory or build a smaller profile.",
            )  # fmt: skip
        return context

    def give_scratch(self, context: Any, address: int, size_bytes: int) -> None:
        """Lend an execution context device memory; the caller keeps and frees it."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size_bytes)
        else:
            context.device_memory = address


def load_dialect(name: str) -> Dialect:
    """The dialect of a flavour by name; imports its module. Raises BackendUnavailable where it is not installed."""
    flavour = FLAVOURS[name]
    try:
        module = importlib.import_module(flavour.module)
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"backend {name}", actual=f"{flavour.module} cannot be imported ({error})",
            allowed=f"an installed {flavour.title}", remedy=f"Run `pip install 'zturbo[{flavour.extra}]'`.",
        ) from error  # fmt: skip
    return Dialect(flavour, module)
