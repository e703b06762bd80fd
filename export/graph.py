"""nn.Module → one ONNX file whose inputs, outputs and symbolic axes are those of a graph's bindings.

The TorchScript exporter at opset 17: it parses on every TensorRT flavour from 8.6 to RTX 1.7, which the
dynamo exporter's opset 18 does not. Does not know what the module computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.binding import Array, Binding, Dims, Graph, Precision, Stage
from export.device import device_of, strict
from export.hollow import hollowed, weights_back
from export.lean import make_lean
from export.reshapes import fix_file
from export.weights import consolidate, read_graph, save_graph

OPSET = 17
CONVOLUTIONS = (torch.conv2d, torch.nn.functional.conv2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A graph before it is exported: its module and everything bundle.json says of it.

    exact: whether it computes in fp32 in the fp16 variant too. hollow: whether it is traced without its weights, so
    that they are never in memory twice; nothing that is computed from weights alone is then folded.
    """

    name: str
    stage: Stage
    module: nn.Module
    precision: Precision
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    carried: dict[str, str]
    only_with: tuple[str, ...] = ()
    exact: bool = False
    hollow: bool = False

    def graph(self, file: str) -> Graph:
        """What bundle.json says of it once it lies in `file`."""
        return Graph(
            name=self.name, stage=self.stage, file=file, precision=self.precision,
            inputs=self.inputs, outputs=self.outputs, carried=self.carried,
            only_with=self.only_with,
        )  # fmt: skip


def onnx_from_module(spec: GraphSpec, inputs: Mapping[str, Array], path: Path) -> None:
    """Trace the module on example inputs and write a checked ONNX file; the module's fp32 form is changed by it.

    inputs: one array per binding of spec.inputs; their sizes must be ≥ 2 on symbolic axes, else tracing fixes them.
    """
    if spec.precision == "fp32":
        device = device_of(spec.module)
        make_lean(spec.module)
        spec.module.to(device)
    if callable(prepare := getattr(spec.module, "prepare", None)):
        prepare()  # what a module makes when it first runs is no part of its graph
    if spec.hollow:
        _trace_hollow(spec, inputs, path)
    else:
        _trace(spec, tensors(spec, inputs), path)
        consolidate(path)
    fix_file(path)
    onnx.checker.check_model(str(path), full_check=True)


def _trace(spec: GraphSpec, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> None:
    axes = {b.name: {k: str(axis) for k, axis in enumerate(b.shape) if isinstance(axis, str)} for b in _all(spec)}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that Python reads
        torch.onnx.export(
            spec.module, inputs, str(path), dynamo=False, opset_version=OPSET,
            input_names=[b.name for b in spec.inputs], output_names=[b.name for b in spec.outputs],
            dynamic_axes={name: named for name, named in axes.items() if named}, verbose=False, **options,
        )  # fmt: skip


def _trace_hollow(spec: GraphSpec, inputs: Mapping[str, Array], path: Path) -> None:
    """Trace without weights, which become inputs, and write them into their places."""
    empty = tuple(tensor.to("meta") for tensor in tensors(spec, inputs))
    with hollowed(spec.module) as weights:
        _trace(spec, empty, path, export_params=False, keep_initializers_as_inputs=True, do_constant_folding=False)
    model = read_graph(path)
    save_graph(model, path, weights_back(model, weights))


def tensors(spec: GraphSpec, arrays: Mapping[str, Array]) -> tuple[Tensor, ...]:
    """The arrays as tensors where the module is, in the order of its inputs and of their types."""
    device = device_of(spec.module)
    return tuple(torch.from_numpy(arrays[b.name].astype(b.dtype)).to(device) for b in spec.inputs)


def run_module(spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The eager module's outputs by name."""
    with torch.inference_mode(), strict(), HalfConvolutions():
        outputs = spec.module(*tensors(spec, inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {binding.name: output.cpu().numpy() for binding, output in zip(spec.outputs, outputs, strict=True)}


class HalfConvolutions(TorchFunctionMode):
    """fp16 convolutions on a CPU, summed in fp32 as a GPU does: torch's own is far slower (27 s, not 0.5, at 256²)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a convolution of fp16 CPU tensors in fp32 and round its result; leave everything else alone."""
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and args[0].dtype == torch.float16 and args[0].device.type == "cpu":
            wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            return func(*wide, **kwargs).half()
        return func(*args, **kwargs)


def example_dims(dims: Dims, multiple: int) -> dict[str, int]:
    """Sizes to trace at: ≥ 2 on every axis, chunks of tokens too, and odd in latents, so that resizing follows its
    input's shape; or in what a model's sizes are multiples of.
    """
    odd = {"height": 17 * multiple, "width": 19 * multiple}
    return {**dims, **odd, "rows": 3, "samples": 2, "draws": 3, "tokens": 2 * dims["tokens"]}


def _all(spec: GraphSpec) -> tuple[Binding, ...]:
    return spec.inputs + spec.outputs
