"""What the parity gate found out about a plan, as plan.json records it. Does not know how it is found out (gate.py)."""

from __future__ import annotations

from typing import Literal

from engine.machine import Machine
from engine.schema import Struct

Status = Literal["passed", "unverified", "rejected"]
"""passed: compared, and within the tolerance. unverified: not compared, the reason says why. rejected: kept aside."""


TOLERANCE = 2.0
"""How many times what torch's own fp16 loses an fp16 plan may lose, where a user does not ask for another number."""


class Comparison(Struct, frozen=True):
    """One output beside the recorded fp32 torch output.

    case: of reference.npz (`default`, `small`, `odd`), or `loop`. error: ‖actual − expected‖ / ‖expected‖; −1 where
    values are not finite, which JSON cannot say. allowed: the greatest error that passes. not_finite: how many values
    are NaN or infinite where the reference's are not.
    """

    case: str
    graph: str
    output: str
    error: float
    allowed: float
    not_finite: int

    @property
    def passed(self) -> bool:
        """Whether the output is close enough."""
        return self.not_finite == 0 and 0 <= self.error <= self.allowed


class Verdict(Struct, frozen=True):
    """What the gate says of a plan.

    reason: in words, why it is unverified or rejected; empty for one that passed. machine: where it was compared; None
    where the gate did not run. reference: identity of what it was compared with (engine/wanted.py). comparisons: those
    of its graph (of a part: of its whole chain) and of the loop. ungated: profiles, or cases of the reference, of which
    nothing could be compared, in words. tolerance: by which TOLERANCE was replaced.
    """

    status: Status
    reason: str = ""
    machine: Machine | None = None
    reference: str = ""
    comparisons: tuple[Comparison, ...] = ()
    ungated: tuple[str, ...] = ()
    tolerance: float = TOLERANCE

    @property
    def text(self) -> str:
        """As a person says it: `passed`, `unverified: built for 8.6 without a GPU`, `passed (not compared: loop)`.

        A tolerance of the user's own is told.
        """
        said = f"{self.status}: {self.reason}" if self.reason else self.status
        if self.comparisons and self.tolerance != TOLERANCE:
            said += f" at tolerance {self.tolerance:g}"
        return f"{said} (not compared: {'; '.join(self.ungated)})" if self.ungated else said


NOT_YET = Verdict(status="unverified", reason="not compared yet")
