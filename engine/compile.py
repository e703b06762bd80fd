"""One graph, or a part of one, to one plan, by TensorRT's own API. Knows neither bundles nor files of plans."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.binding import Graph, PlanPrecision
from engine.buildlog import BuildLog, facts_from_plan
from engine.chain import named_wires
from engine.dialect import Dialect, Log, Mode
from engine.errors import BuildFailed, ExtraMissing
from engine.plan import WHOLE, Facts, Identity, Options, Shapes, Wires
from engine.publish import unwritable
from engine.timing import TimingCache

MAX_LINES = 6
"""Of TensorRT's errors, the first say what went wrong; the rest what followed from it."""
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError)
"""How the bindings say no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a plan is built from.

    read: gives the bytes of an ONNX file; called for each attempt, so that a build need not hold them. path: where
    they were read; external data lies beside. weights: a file that may be written for a build that needs external data
    in other types, and is removed after it. graph: the whole one, also where the identity asks for a part.
    """

    read: Callable[[], bytes]
    path: Path
    weights: Path
    graph: Graph
    identity: Identity

    @property
    def precision(self) -> PlanPrecision:
        """What the graph computes in: an fp32 one (start, solver) stays so in every plan."""
        return "fp32" if self.graph.precision == "fp32" else self.identity.precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A plan, its inputs and outputs, the mode it was built in, its count of warnings, and what the build showed.

    plan: TensorRT's own memory, not copied: a plan is as large as its weights.
    """

    plan: memoryview
    wires: Wires
    mode: Mode
    warnings: int
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsable:
    """An ONNX graph as the parser gets it.

    shapes: for each optimization profile, of its inputs. types: the dtypes of its inputs and outputs, wires: their
    names. fp32: the tensors that nodes compute in fp32; empty where nothing holds them.
    """

    raw: bytes
    path: Path
    shapes: tuple[Shapes, ...]
    types: dict[str, str]
    wires: Wires
    fp32: frozenset[str] = frozenset()


def plan_from_onnx(dialect: Dialect, source: Source, options: Options, timing: TimingCache) -> Compiled:
    """Build a plan for every optimization profile of source.identity.

    Tries the dialect's modes in turn. Raises BuildFailed with TensorRT's own lines for each, ExtraMissing or
    OutputError.
    """
    subject, title = f"graph {source.identity.name!r}", f"{dialect.flavour.title} {dialect.version}"
    capabilities = source.identity.capabilities
    known = dialect.precisions(capabilities)
    if source.precision not in known:
        raise BuildFailed(
            subject, actual=source.precision, allowed=f"{', '.join(known)}: {title} for {', '.join(capabilities)}",
            remedy="Choose another precision; bf16 needs compute capability 8.0.",
        )  # fmt: skip
    refusals: list[str] = []
    for mode in dialect.modes(source.precision):
        if mode.widened and source.graph.stage == "loop":
            continue
        log = Log()
        try:
            return _compiled(dialect, source, mode, options, timing, log)
        except _REFUSALS as error:
            refusals.append("; ".join([f"{mode.name}: {error}", *log.errors[:MAX_LINES]]))
    raise BuildFailed(
        subject, actual=" | ".join(refusals), allowed=f"a graph that {title} builds",
        remedy="Try a smaller profile or another TensorRT, or report the lines above.",
    )  # fmt: skip


def _compiled(
    dialect: Dialect, source: Source, mode: Mode, options: Options, timing: TimingCache, log: Log
) -> Compiled:
    """Build in one mode. Raises one of _REFUSALS, BuildFailed, ExtraMissing or OutputError."""
    shown = BuildLog()
    log.sink = shown.read
    logger = dialect.logger(log)
    try:  # the parser maps weights, so their file stays for as long as the network does
        build = _Build(dialect, source, mode, options, logger)
        plan, wires = build.plan(timing, log), build.wires
        del build  # with it the network, before the plan is looked into
    finally:
        with contextlib.suppress(OSError):
            source.weights.unlink(missing_ok=True)
    facts = None if dialect.flavour.portable else facts_from_plan(dialect, plan, logger)
    return Compiled(plan=plan, wires=wires, mode=mode, warnings=len(log.warnings), facts=facts or shown.facts())


class _Build:
    """A network and what its builder is told, for as long as one build takes."""

    def __init__(self, dialect: Dialect, source: Source, mode: Mode, options: Options, logger: Any) -> None:
        """Parse. Raises what `_compiled` does."""
        self._dialect, self._mode, self._options = dialect, mode, options
        self._capabilities = source.identity.capabilities
        self._builder = dialect.trt.Builder(logger)
        parsable = _parsable(dialect, source, mode)
        self._network = _network(dialect, self._builder, logger, parsable)
        self._shapes = parsable.shapes
        _check_wires(dialect, self._network, parsable.types)
        self.wires = parsable.wires
        if mode.hold_fp32:
            dialect.hold_fp32(self._network, parsable.fp32)

    def plan(self, timing: TimingCache, log: Log) -> memoryview:
        """The plan. A timing cache that is refused, or without which a build works that failed, is a warning."""
        content = timing.read()
        try:
            return self._built(timing, content, log)
        except _REFUSALS:
            if not content:
                raise
        log.warnings.append("built again without the timing cache")
        plan = self._built(timing, None, log)
        timing.forget()
        return plan

    def _built(self, timing: TimingCache, content: bytes | None, log: Log) -> memoryview:
        config = self._builder.create_builder_config()
        self._dialect.configure(config, self._mode, self._capabilities, self._options)
        for shapes in self._shapes:
            if config.add_optimization_profile(_profile(self._builder, self._network, shapes)) < 0:
                raise RuntimeError("the optimization profile was refused")
        if content is not None and not timing.attach(config, content):
            log.warnings.append("the timing cache was refused")
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            raise RuntimeError("no plan")
        if content is not None:
            timing.merge(config)
        return memoryview(plan).cast("B")


def _parsable(dialect: Dialect, source: Source, mode: Mode) -> _Parsable:
    """The graph, rewritten where this flavour, part or precision needs it. Raises what `_rewritten` does."""
    raw, identity = source.read(), source.identity
    wires: dict[str, str] = {binding.name: binding.dtype for binding in source.graph.bindings}
    as_it_is = not (mode.hold_fp32 or dialect.instance_norm_needs_plugin or source.precision == "bf16")
    if as_it_is and identity.part == WHOLE:
        made = named_wires(source.graph.inputs, source.graph.outputs)
        return _Parsable(raw=raw, path=source.path, shapes=identity.shapes, types=wires, wires=made)
    try:
        return _rewritten(dialect, source, mode, raw, wires)
    except ImportError as error:
        extra = dialect.flavour.extra
        raise ExtraMissing(
            f"graph {identity.name!r}", actual=f"onnx cannot be imported ({error})",
            allowed=f"onnx, which rewrites graphs for {dialect.flavour.title} {dialect.version}",
            remedy=f"Run `pip install 'zturbo[{extra}]'`.",
        ) from error  # fmt: skip


def _rewritten(dialect: Dialect, source: Source, mode: Mode, raw: bytes, wires: dict[str, str]) -> _Parsable:
    """What only flavours, parts and precisions that need onnx get.

    Raises ImportError, ValueError, BuildFailed or OutputError.
    """
    from engine.cut import Layout
    from engine.rewrite import bfloat16_from_float16, fix_axes, read_model, wire_types

    identity, path = source.identity, source.path
    try:
        model = read_model(raw, path.parent)
    except ValueError as error:
        remedy = "Export the bundle again; the file is as export wrote it."
        actual = f"{path.name} does not parse: {error}"
        raise BuildFailed(f"graph {identity.name!r}", actual=actual, allowed="ONNX", remedy=remedy) from error
    shapes, made = identity.shapes, named_wires(source.graph.inputs, source.graph.outputs)
    if identity.part != WHOLE:
        layout = Layout(model)
        shapes = tuple(layout.shapes(identity.part, one) for one in identity.shapes)
        model = layout.part(identity.part)
        made = named_wires(model.graph.input, model.graph.output)
    if source.precision == "bf16":
        try:
            source.weights.parent.mkdir(parents=True, exist_ok=True)
            bfloat16_from_float16(model, path.parent, wires, source.weights)
        except OSError as error:
            raise unwritable(source.weights, error) from error
        path = source.weights.with_name(path.name)
    if identity.part != WHOLE:
        wires = {name: wires.get(name, dtype) for name, dtype in wire_types(model).items()}
    if mode.fixed:
        fix_axes(model, shapes)
    fp32 = _with_own_norms(dialect, source, mode, model)
    return _Parsable(raw=model.SerializeToString(), path=path, shapes=shapes, types=wires, wires=made, fp32=fp32)


def _with_own_norms(dialect: Dialect, source: Source, mode: Mode, model: Any) -> frozenset[str]:
    """Rewrite a model's norms, or all of it, in place, where flavour and mode need it; the tensors to hold in fp32."""
    from engine.rewrite import float32_tensors, layer_norm_from_instance_norm, layer_norm_in_float32
    from engine.widen import float32_from_float16

    if dialect.instance_norm_needs_plugin:
        layer_norm_from_instance_norm(model)
    if mode.widened:
        float32_from_float16(model)
    elif mode.hold_fp32 and source.graph.stage == "once" and dialect.layer_norm_is_wrong_in_fp16:
        layer_norm_in_float32(model)
    return float32_tensors(model) if mode.hold_fp32 else frozenset[str]()


def _network(dialect: Dialect, builder: Any, logger: Any, parsable: _Parsable) -> Any:
    network = dialect.network(builder)
    if network is None:
        raise RuntimeError("no network")
    parser = dialect.trt.OnnxParser(network, logger)
    if not parser.parse(parsable.raw, str(parsable.path)):
        lines = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError("; ".join([f"{parsable.path.name} does not parse", *lines[:MAX_LINES]]))
    return network


def _check_wires(dialect: Dialect, network: Any, wires: dict[str, str]) -> None:
    """Every input and output is a binding of the graph, or crosses from part to part, under its name and in its type.

    A network that is not strongly typed would choose types of its own, so they are set.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    if {tensor.name for tensor in tensors} != set(wires):
        found = ", ".join(sorted(tensor.name for tensor in tensors))
        raise ValueError(f"inputs and outputs are {found}, the bundle says {', '.join(sorted(wires))}")
    for tensor in tensors:
        dtype = wires[tensor.name]
        if not dialect.set_type(tensor, dtype):
            raise ValueError(f"{tensor.name} is {dialect.dtype(tensor.dtype)}, the bundle says {dtype}")


def _profile(builder: Any, network: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        low, opt, high = shapes[tensor.name]
        if len(tensor.shape) != len(opt):
            raise ValueError(f"{tensor.name} has {len(tensor.shape)} axes, the bundle says {len(opt)}")
        profile.set_shape(tensor.name, low, opt, high)
    return profile
