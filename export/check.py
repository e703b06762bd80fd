"""Every exported graph, run in ONNX Runtime on the CPU, against the recorded fp32 torch outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from engine.binding import Array, Precision
from engine.errors import ExportMismatch
from export.graph import GraphSpec
from export.reference import Arrays, relative_error

FP32_TOLERANCE = 2e-5
"""Relative; rounding of sums in another order. The largest seen on these models is 4e-6 (VAE decoder)."""
IMAGE_TOLERANCE = 2e-3
"""Relative, uint8: a value that lies at .5 may round to either side; one level of 255 everywhere would be 8e-3."""
FP16_FLOOR = 1e-3
"""Added to twice torch's own fp16 error: ONNX Runtime's CPU provider computes fp16 graphs in fp32, weights rounded."""


def open_session(path: Path) -> ort.InferenceSession:
    """A CPU session whose idle threads do not spin."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_graph(
    spec: GraphSpec,
    variant: Precision,
    path: Path,
    cases: Mapping[str, tuple[Arrays, Arrays]],
    fp16_errors: Mapping[str, Mapping[str, float]],
) -> None:
    """Compare one graph with the reference of each case.

    cases: {case: (inputs, expected outputs)}, both fp32. fp16_errors: {case: {output: torch's own fp16 error}}.
    Raises ExportMismatch, which names graph, output, error and tolerance.
    """
    session = open_session(path)
    for case, (inputs, expected) in cases.items():
        feed = {b.name: inputs[b.name].astype(b.dtype) for b in spec.inputs}
        outputs = session.run([b.name for b in spec.outputs], feed)
        for binding, actual in zip(spec.outputs, outputs, strict=True):
            wanted = expected[binding.name]
            limit = _tolerance(variant, wanted, fp16_errors.get(case, {}).get(binding.name, 0.0))
            _compare(f"{spec.name}.onnx ({variant}), case '{case}', output '{binding.name}'", actual, wanted, limit)


def _tolerance(variant: Precision, expected: Array, fp16_error: float) -> float:
    if variant == "fp16":
        return 2 * fp16_error + FP16_FLOOR
    return IMAGE_TOLERANCE if expected.dtype == np.uint8 else FP32_TOLERANCE


def _compare(subject: str, actual: Array, expected: Array, tolerance: float) -> None:
    same_shape = actual.shape == expected.shape
    error = relative_error(actual, expected) if same_shape else float("inf")
    if error > tolerance:
        found = f"relative error {error:.2e}" if same_shape else f"shape {actual.shape}, not {expected.shape}"
        raise ExportMismatch(
            subject, actual=found, allowed=f"{tolerance:.1e}",
            remedy="The graph does not compute what the module does; nothing was written.",
        )  # fmt: skip
