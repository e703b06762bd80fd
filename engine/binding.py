"""Bindings: the named inputs and outputs of a graph, their types, shapes and lifetimes.

Knows nothing of where a graph is stored or what runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Float32Array = NDArray[np.float32]
DType = Literal["float32", "float16", "int32", "uint8"]
Lifetime = Literal["constant", "per_sample", "per_row", "carried", "transient"]
Stage = Literal["once", "loop", "final", "preview"]
"""In the order they run in; `preview` between steps, where it is asked for."""
Precision = Literal["fp32", "fp16"]
"""A variant of a bundle's graphs."""
PlanPrecision = Literal["fp32", "fp16", "bf16"]
"""What plans are built in: bf16 from the fp16 graphs, their types changed at build."""
Axis = int | str
Dims = Mapping[str, int]

SYMBOLS = ("samples", "rows", "height", "width", "tokens", "draws")
"""Every symbol that a shape may name; each may be divided: `height/8`."""


class Binding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One named input or output of a graph.

    shape: integers, or a symbol of SYMBOLS, optionally divided by an integer (`height/8`).
    lifetime: how long the value stays: `constant` as long as the bundle, `per_sample` and `per_row` for a
    batch, `carried` from step to step, `transient` within one step.
    """

    name: str
    dtype: DType
    shape: tuple[Axis, ...]
    lifetime: Lifetime

    def resolve(self, dims: Dims) -> tuple[int, ...]:
        """The shape as integers, with each symbol's value taken from dims."""
        return tuple(resolve_axis(axis, dims) for axis in self.shape)


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ONNX graph of a bundle: where it is, when it runs, and what goes in and out.

    carried: {input: output}, the pairs by which a step's result is the next step's input.
    hoisted_from: of a prologue, the graph of stage `loop` that it was cut from; else empty.
    only_with: the host's wires without which the graph is not launched; its outputs are zeros then.
    """

    name: str
    stage: Stage
    file: str
    precision: Precision
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    carried: dict[str, str] = {}
    hoisted_from: str = ""
    only_with: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        """Whether a picture can be painted without it."""
        return bool(self.only_with) or self.stage == "preview"

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    @property
    def one_by_one(self) -> bool:
        """Whether samples can pass through it one at a time: nothing of it concerns more than one of them.

        True of decoders, and their plans take one sample: TensorRT 8.6 did not finish SD 1.5's for a range of samples,
        its scratch is the largest there is and grows with the batch, and one sample fills a GPU.
        """
        return self.stage == "final" and all(binding.shape[:1] == ("samples",) for binding in self.bindings)


def symbols_of(graphs: Iterable[Graph]) -> set[str]:
    """The symbols that the shapes of graphs name."""
    axes = (axis for graph in graphs for binding in graph.bindings for axis in binding.shape)
    return {axis.partition("/")[0] for axis in axes if isinstance(axis, str)}


def variant_of(precision: PlanPrecision) -> Precision:
    """The variant of the graphs that plans of a precision are built from."""
    return "fp32" if precision == "fp32" else "fp16"


def resolve_axis(axis: Axis, dims: Dims) -> int:
    """An axis as an integer. Raises KeyError for an unknown symbol, ValueError where a division leaves a rest."""
    if isinstance(axis, int):
        return axis
    symbol, _, divisor = axis.partition("/")
    value, rest = divmod(dims[symbol], int(divisor or 1))
    if rest:
        raise ValueError(f"{symbol} = {dims[symbol]} is not a multiple of {divisor}")
    return value
