"""One graph to one plan, by TensorRT's own API. Knows neither bundles nor files of plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.binding import Graph
from engine.dialect import Dialect, Log, Mode
from engine.errors import BuildFailed, ExtraMissing
from engine.plan import Shapes

MAX_LINES = 6
"""Of TensorRT's errors, the first say what went wrong; the rest what followed from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A plan's bytes, the mode it was built in, and how many warnings TensorRT wrote."""

    plan: bytes
    mode: Mode
    warnings: int


def plan_from_onnx(
    dialect: Dialect, raw: bytes, path: Path, graph: Graph, shapes: Shapes, capabilities: tuple[str, ...]
) -> Compiled:
    """Build a plan from an ONNX file's bytes.

    path: where those bytes were read; external data is looked for beside it. shapes: (min, opt, max) by input.
    Tries the dialect's modes in turn. Raises BuildFailed with TensorRT's own lines for each, or ExtraMissing.
    """
    modes = dialect.modes(graph.precision)
    hold_fp32, fp32 = any(mode.hold_fp32 for mode in modes), frozenset[str]()
    if hold_fp32 or dialect.instance_norm_needs_plugin:
        raw, fp32 = _rewritten(dialect, raw, path, graph, hold_fp32)
    refusals: list[str] = []
    for mode in modes:
        log = Log()
        logger = dialect.logger(log)
        try:
            builder = dialect.trt.Builder(logger)
            network = _network(dialect, builder, logger, raw, path)
            _check_wires(dialect, network, graph)
            if mode.hold_fp32:
                dialect.hold_fp32(network, fp32)
            plan = _build(dialect, builder, network, shapes, mode, capabilities)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # how the bindings say no
            refusals.append("; ".join([f"{mode.name}: {error}", *log.errors[:MAX_LINES]]))
        else:
            return Compiled(plan=plan, mode=mode, warnings=len(log.warnings))
    raise BuildFailed(
        f"graph {graph.name!r}", actual=" | ".join(refusals),
        allowed=f"a graph that {dialect.flavour.title} {dialect.version} builds",
        remedy="Try a smaller profile or another TensorRT, or report the lines above.",
    )  # fmt: skip


def _rewritten(dialect: Dialect, raw: bytes, path: Path, graph: Graph, hold_fp32: bool) -> tuple[bytes, frozenset[str]]:
    """The graph as a flavour takes it that needs it rewritten, and where they are held the names of its fp32 tensors.

    Only these flavours need onnx. Raises ExtraMissing or BuildFailed.
    """
    subject = f"graph {graph.name!r}"
    try:
        from engine.rewrite import float32_tensors, layer_norm_from_instance_norm, read_model
    except ImportError as error:
        extra = dialect.flavour.extra
        raise ExtraMissing(
            subject, actual=f"onnx cannot be imported ({error})",
            allowed=f"onnx, which rewrites graphs for {dialect.flavour.title} {dialect.version}",
            remedy=f"Run `pip install 'zturbo[{extra}]'`.",
        ) from error  # fmt: skip
    try:
        model = read_model(raw, path.parent)
    except ValueError as error:
        remedy = "Export the bundle again; the file is as export wrote it."
        actual = f"{path.name} does not parse: {error}"
        raise BuildFailed(subject, actual=actual, allowed="ONNX", remedy=remedy) from error
    fp32 = float32_tensors(model) if hold_fp32 else frozenset[str]()
    return (model.SerializeToString() if layer_norm_from_instance_norm(model) else raw), fp32


def _network(dialect: Dialect, builder: Any, logger: Any, raw: bytes, path: Path) -> Any:
    network = dialect.network(builder)
    if network is None:
        raise RuntimeError("no network")
    parser = dialect.trt.OnnxParser(network, logger)
    if not parser.parse(raw, str(path)):
        lines = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError("; ".join([f"{path.name} does not parse", *lines[:MAX_LINES]]))
    return network


def _check_wires(dialect: Dialect, network: Any, graph: Graph) -> None:
    """Every input and output is one of the graph's bindings, under its name and in its type."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    wires = {binding.name: binding for binding in graph.bindings}
    if {tensor.name for tensor in tensors} != set(wires):
        found = ", ".join(sorted(tensor.name for tensor in tensors))
        raise ValueError(f"inputs and outputs are {found}, the bundle says {', '.join(sorted(wires))}")
    for tensor in tensors:
        dtype = wires[tensor.name].dtype
        if not dialect.set_type(tensor, dtype):
            raise ValueError(f"{tensor.name} is {dialect.dtype(tensor.dtype)}, the bundle says {dtype}")


def _build(
    dialect: Dialect, builder: Any, network: Any, shapes: Shapes, mode: Mode, capabilities: tuple[str, ...]
) -> bytes:
    config = builder.create_builder_config()
    dialect.configure(config, mode, capabilities)
    if config.add_optimization_profile(_profile(builder, network, shapes)) < 0:
        raise RuntimeError("the optimization profile was refused")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no plan")
    return bytes(plan)


def _profile(builder: Any, network: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        low, opt, high = shapes[tensor.name]
        if len(tensor.shape) != len(opt):
            raise ValueError(f"{tensor.name} has {len(tensor.shape)} axes, the bundle says {len(opt)}")
        profile.set_shape(tensor.name, low, opt, high)
    return profile
