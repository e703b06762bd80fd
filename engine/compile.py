"""One graph to one plan, by TensorRT's own API. Knows neither bundles nor files of plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engine.binding import Graph
from engine.dialect import Dialect, Log, Mode
from engine.errors import BuildFailed
from engine.plan import Shapes
from engine.rewrite import float32_tensors, layer_norm_from_instance_norm

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
    Tries the dialect's modes in turn. Raises BuildFailed with TensorRT's own lines for each.
    """
    raw, fp32 = _prepared(dialect, raw)
    refusals: list[str] = []
    for mode in dialect.modes(graph.precision):
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


def _prepared(dialect: Dialect, raw: bytes) -> tuple[bytes, frozenset[str]]:
    """The graph as the flavour takes it, and the names of its fp32 tensors where the flavour must be told."""
    if not dialect.instance_norm_needs_plugin and dialect.strongly_typed:
        return raw, frozenset()
    model = onnx.load_model_from_string(raw)
    fp32 = frozenset() if dialect.strongly_typed else float32_tensors(model)
    if dialect.instance_norm_needs_plugin and layer_norm_from_instance_norm(model):
        raw = model.SerializeToString()
    return raw, fp32


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
