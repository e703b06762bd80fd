"""nn.Module → one ONNX file whose inputs, outputs and symbolic axes are those of a graph's bindings.

The TorchScript exporter at opset 17: it parses on every TensorRT flavour (shared facts, 8.6 to RTX 1.7).
Does not know what the module computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from engine.binding import Array, Binding, Dims, Graph, Precision, Stage

OPSET = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A graph before it is exported: its module and everything bundle.json says of it."""

    name: str
    stage: Stage
    module: nn.Module
    precision: Precision
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    carried: dict[str, str]

    def graph(self, file: str) -> Graph:
        """What bundle.json says of it once it lies in `file`."""
        return Graph(
            name=self.name, stage=self.stage, file=file, precision=self.precision,
            inputs=self.inputs, outputs=self.outputs, carried=self.carried,
        )  # fmt: skip


def onnx_from_module(spec: GraphSpec, inputs: Mapping[str, Array], path: Path) -> None:
    """Trace the module on example inputs and write a checked ONNX file.

    inputs: one array per binding of spec.inputs; their sizes must be ≥ 2 on symbolic axes, else tracing fixes them.
    """
    axes = {b.name: {k: str(axis) for k, axis in enumerate(b.shape) if isinstance(axis, str)} for b in _all(spec)}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that Python reads
        torch.onnx.export(
            spec.module, tensors(spec.inputs, inputs), str(path), dynamo=False, opset_version=OPSET,
            input_names=[b.name for b in spec.inputs], output_names=[b.name for b in spec.outputs],
            dynamic_axes={name: named for name, named in axes.items() if named}, verbose=False,
        )  # fmt: skip
    onnx.checker.check_model(str(path), full_check=True)


def tensors(bindings: Sequence[Binding], arrays: Mapping[str, Array]) -> tuple[Tensor, ...]:
    """The arrays as tensors, in the order of the bindings and of the bindings' types."""
    return tuple(torch.from_numpy(arrays[b.name].astype(b.dtype)) for b in bindings)


def run_module(spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The eager module's outputs by name."""
    with torch.inference_mode():
        outputs = spec.module(*tensors(spec.inputs, inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {binding.name: output.numpy() for binding, output in zip(spec.outputs, outputs, strict=True)}


def example_dims(dims: Dims, factor: int) -> dict[str, int]:
    """Sizes to trace at: ≥ 2 on every axis, and odd in latents, so that resizing follows its input's shape."""
    odd = {"height": 17 * factor, "width": 19 * factor}
    return {**dims, **odd, "rows": 3, "samples": 2, "draws": 3}


def _all(spec: GraphSpec) -> tuple[Binding, ...]:
    return spec.inputs + spec.outputs
