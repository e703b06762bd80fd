"""How far a plan's output is from the recorded fp32 torch output, and how far it may be. Runs nothing.

fp16: `tolerance` times what torch's own fp16 loses, recorded at export; twice, where a user asks for nothing else.
bf16: 8 times that, for its mantissa has 7 bits where fp16's has 10. fp32: FLOORS, which are for sums in another order;
it is built without TF32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.binding import Array, PlanPrecision
from engine.verdict import TOLERANCE, Comparison

MARGIN: dict[PlanPrecision, float] = {"fp32": 0.0, "fp16": 1.0, "bf16": 8.0}
"""By what the tolerance is multiplied."""
FLOORS = {"float32": 1e-4, "float16": 5e-4, "uint8": 1 / 256}
"""The least that is allowed, where torch's fp16 loses nothing: sums in another order; half a unit in the last place of
fp16; one level in a quarter of the values of a middle grey. Integers that are no pixels must be equal."""
LOOP = 10.0
"""By what a loop multiplies the floor of fp32: a guidance of 7.5 multiplies a difference of two rows."""
_TINY = 1e-30


class Difference(NamedTuple):
    """error: ‖actual − expected‖ / ‖expected‖ in float64; −1 where not_finite values are NaN or infinite, and where
    nothing finite was expected: such a reference says nothing, so nothing passes beside it.
    """

    error: float
    not_finite: int


def difference(actual: Array, expected: Array) -> Difference:
    """Of two arrays of one shape; values that are not finite in the expected one are left out."""
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    known = np.isfinite(e)
    not_finite = int(np.count_nonzero(known & ~np.isfinite(a)))
    if not_finite or not known.any():
        return Difference(-1.0, not_finite)
    a, e = a[known], e[known]
    return Difference(float(np.linalg.norm(a - e) / max(float(np.linalg.norm(e)), _TINY)), 0)


def allowed_error(
    dtype: str, precision: PlanPrecision, fp16_error: float, *, loop: bool = False, tolerance: float = TOLERANCE
) -> float:
    """The greatest error that passes.

    dtype: the output's. fp16_error: what torch's fp16 loses, 0 where not known. loop: at the end of a whole run.
    tolerance: how many times fp16_error.
    """
    if dtype not in FLOORS:
        return 0.0
    scale = 8.0 if (dtype, precision) == ("float16", "bf16") else LOOP if loop and dtype == "float32" else 1.0
    return max(scale * FLOORS[dtype], MARGIN[precision] * tolerance * fp16_error)


def compared(case: str, graph: str, output: str, arrays: tuple[Array, Array], allowed: float) -> Comparison:
    """The comparison of an output. arrays: actual, expected."""
    error, not_finite = difference(*arrays)
    return Comparison(case=case, graph=graph, output=output, error=error, allowed=allowed, not_finite=not_finite)


def miss_text(missed: Comparison) -> str:
    """A comparison that did not pass, in words."""
    found = error_text(missed)
    return f"'{missed.output}' of {missed.graph}, case {missed.case}: {found}, allowed {missed.allowed:.2e}"


def error_text(missed: Comparison) -> str:
    """How far an output that did not pass is from what was expected: `error 5.00e-01`."""
    if missed.not_finite:
        return f"{missed.not_finite} values NaN or infinite"
    return "beside a reference with no finite value" if missed.error < 0 else f"error {missed.error:.2e}"
