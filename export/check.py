"""Every exported graph, and the loop of them, in ONNX Runtime on the CPU, against the recorded fp32 torch outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from engine.binding import Array, Graph, Precision
from engine.errors import ExportMismatch
from export.graph import GraphSpec
from export.loop import Loop, Run, run_stages
from export.reference import Arrays, relative_error

FP32_TOLERANCE = 2e-5
"""Relative; rounding of sums in another order. The largest seen on these models is 4e-6 (VAE decoder)."""
IMAGE_TOLERANCE = 2e-3
"""Relative, uint8: a value that lies at .5 may round to either side; one level of 255 everywhere would be 8e-3."""
LOOP_TOLERANCE = 1e-4
"""Relative, fp32: each of a few evaluations adds a graph's rounding, several times over by the guidance."""
FP16_FLOOR = 1e-3
"""Added to twice torch's own fp16 error: ONNX Runtime's CPU provider computes fp16 graphs in fp32, weights rounded."""


def open_session(path: Path) -> ort.InferenceSession:
    """A CPU session whose idle threads do not spin, and which copies no weights into another layout.

    For a few runs that layout costs more than it gives: CLIP's two encoders of SDXL open in 3.2 instead of 6.5 seconds
    of a core, and each run takes 2.9 instead of 2.6.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Sessions:
    """Graphs in ONNX Runtime, opened when they first run."""

    def __init__(self, folder: Path, graphs: Sequence[Graph] = ()) -> None:
        self._folder, self._graphs = folder, {graph.name: graph for graph in graphs}
        self._open: dict[str, ort.InferenceSession] = {}

    def add(self, graphs: Sequence[Graph]) -> None:
        """Know these too; the sessions that are open stay so: half a minute each of a large model."""
        self._graphs |= {graph.name: graph for graph in graphs}

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """A graph's outputs by wire."""
        graph = self._graphs[name]
        if name not in self._open:
            self._open[name] = open_session(self._folder / graph.file)
        feed = {binding.name: inputs[binding.name].astype(binding.dtype) for binding in graph.inputs}
        names = [binding.name for binding in graph.outputs]
        return dict(zip(names, self._open[name].run(names, feed), strict=True))


def check_graph(
    spec: GraphSpec,
    variant: Precision,
    graphs: Sequence[Graph],
    run: Run,
    cases: Mapping[str, tuple[Arrays, Arrays]],
    fp16_errors: Mapping[str, Mapping[str, float]],
) -> None:
    """Compare one graph, or the chain that it was split into, with the reference of each case.

    graphs: the chain, in order. run: what runs them. cases: {case: (inputs, expected outputs)}, both fp32.
    fp16_errors: {case: {output: torch's own fp16 error}}. Raises ExportMismatch, which names graph, output, error and
    tolerance.
    """
    for case, (inputs, expected) in cases.items():
        wires = dict(inputs)
        for graph in graphs:
            wires |= run(graph.name, wires)
        for binding in spec.outputs:
            wanted = expected[binding.name]
            subject = f"{spec.name}.onnx ({variant}), case '{case}', output '{binding.name}'"
            limit = _tolerance(subject, variant, wanted, fp16_errors.get(case, {}).get(binding.name, 0.0))
            _compare(subject, wires[binding.name], wanted, limit)


def check_loop(
    loop: Loop, variant: Precision, graphs: Sequence[Graph], run: Run, fp16_error: Mapping[str, float]
) -> None:
    """Compare a run of all stages with the recorded one. Raises ExportMismatch."""
    wires = run_stages(graphs, loop.host, loop.evaluations, run)
    for name, wanted in loop.results.items():
        subject = f"loop of {loop.evaluations} evaluations ({variant}), '{name}'"
        limit = _tolerance(subject, variant, wanted, fp16_error.get(name, 0.0), LOOP_TOLERANCE)
        _compare(subject, wires[name], wanted, limit)


def _tolerance(
    subject: str, variant: Precision, expected: Array, fp16_error: float, fp32: float = FP32_TOLERANCE
) -> float:
    """The greatest error that passes. Raises ExportMismatch where torch's own fp16 overflows: everything would pass."""
    if variant == "fp16" and not math.isfinite(fp16_error):
        raise ExportMismatch(
            subject, actual="torch's own fp16 is not finite", allowed="finite values",
            remedy="This model overflows in fp16: export it with --precision fp32; nothing was written.",
        )  # fmt: skip
    if variant == "fp16":
        return 2 * fp16_error + FP16_FLOOR
    return IMAGE_TOLERANCE if expected.dtype == np.uint8 else fp32


def _compare(subject: str, actual: Array, expected: Array, tolerance: float) -> None:
    same_shape = actual.shape == expected.shape
    error = relative_error(actual, expected) if same_shape else float("inf")
    if error > tolerance:
        found = f"relative error {error:.2e}" if same_shape else f"shape {actual.shape}, not {expected.shape}"
        raise ExportMismatch(
            subject, actual=found, allowed=f"{tolerance:.1e}",
            remedy="The graph does not compute what the module does; nothing was written.",
        )  # fmt: skip
