"""What a build tells of itself while it runs: one event for each thing that happens to a plan, and the time left.

Does not know how plans are built, and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.estimate import Pace, seconds_left
from engine.plan import Identity

Kind = Literal["kept", "renewed", "started", "running", "built", "checking", "checked", "rejected", "remark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """Something that happened to one plan.

    kind: `kept` (valid as it is), `renewed` (only the rest of the bundle changed: a new plan.json beside the plan as
    it was), `started`, `running` (about once a second, of the plan that runs longest), `built`; then `checked` or
    `rejected` by the parity gate. `checking` is of all plans of a set: the gate begins; then it is `running`, and plan
    is empty. A `remark` is of no plan: reason is all it says.
    plan: the graph and the part. profile: its profiles. reason: why it is kept or built, or what the gate found.
    seconds: that its build took or runs. done, total: plans. running: builds side by side. elapsed: seconds since the
    build began. left: seconds until the last is built, None where that is unknown.
    """

    kind: Kind
    plan: str
    graph: str
    profile: str
    reason: str
    seconds: float | None
    done: int
    total: int
    running: int = 0
    elapsed: float = 0.0
    left: float | None = None

    def __str__(self) -> str:
        """As a line: `built denoiser 2/7 256@2 in 31.4 s (no plan)`."""
        if self.kind == "remark":
            return self.reason
        took = "" if self.seconds is None else f" {'for' if self.kind == 'running' else 'in'} {self.seconds:.1f} s"
        what = f"{self.kind} {self.plan}" if self.plan else "checking"
        return f"{what} {self.profile}{took} ({self.reason})"


OnProgress = Callable[[BuildEvent], None]


@dataclass(slots=True)
class _Plan:
    """A plan that is asked for, as its progress sees it."""

    identity: Identity
    reason: str
    predicted: float | None
    begun: float | None = None
    taken: float | None = None
    done: bool = False


class Progress:
    """Tells `tell` what happens to the plans of one build; a plan is known by its path."""

    def __init__(self, tell: OnProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock, self._begun = tell, clock, clock()
        self._plans: dict[str, _Plan] = {}
        self.side_by_side = 1

    def add(self, path: str, identity: Identity, reason: str, predicted: float | None) -> None:
        """A plan that is asked for. predicted: seconds of its build, None where unknown."""
        self._plans[path] = _Plan(identity, reason, predicted)

    def kept(self, path: str, kind: Kind) -> None:
        """The plan is valid: `kept` or `renewed`."""
        self._plans[path].done = True
        self._event(kind, path)

    def started(self, path: str) -> None:
        """Its build began."""
        self._plans[path].begun = self._clock()
        self._event("started", path)

    def running(self) -> None:
        """Some builds still run."""
        running = self._running()
        if running:
            path, plan = min(running, key=lambda item: item[1].begun or 0.0)
            self._event("running", path, self._clock() - (plan.begun or 0.0), f"{len(running)} side by side")

    def built(self, path: str, seconds: float) -> None:
        """Its build ended well."""
        self._plans[path].taken, self._plans[path].done = seconds, True
        self._event("built", path, seconds)

    def checking(self, profiles: Sequence[str]) -> Callable[[], None]:
        """The parity gate begins with a set of plans; returns what to call about once a second while it runs."""
        text, begun = " + ".join(profiles), self._clock()
        self._tell(self._of_none("checking", "the parity gate", text))
        return lambda: self._tell(self._of_none("running", "the parity gate", text, self._clock() - begun))

    def judged(self, path: str, kind: Kind, reason: str) -> None:
        """The parity gate looked at it: `checked` or `rejected`."""
        self._event(kind, path, reason=reason)

    def remark(self, text: str) -> None:
        """Something of no plan."""
        self._tell(self._of_none("remark", text))

    def _of_none(self, kind: Kind, reason: str, profile: str = "", seconds: float | None = None) -> BuildEvent:
        """An event of no plan."""
        return BuildEvent(
            kind=kind, plan="", graph="", profile=profile, reason=reason, seconds=seconds, done=self._done(),
            total=len(self._plans), elapsed=self._clock() - self._begun,
        )  # fmt: skip

    def _event(self, kind: Kind, path: str, seconds: float | None = None, reason: str | None = None) -> None:
        plan = self._plans[path]
        self._tell(BuildEvent(
            kind=kind, plan=plan.identity.name, graph=plan.identity.graph, profile=" + ".join(plan.identity.profiles),
            reason=plan.reason if reason is None else reason, seconds=seconds, done=self._done(),
            total=len(self._plans), running=len(self._running()), elapsed=self._clock() - self._begun,
            left=self._left(),
        ))  # fmt: skip

    def _done(self) -> int:
        return sum(plan.done for plan in self._plans.values())

    def _running(self) -> Sequence[tuple[str, _Plan]]:
        return [(path, plan) for path, plan in self._plans.items() if plan.begun is not None and not plan.done]

    def _left(self) -> float | None:
        now = self._clock()
        paces = [
            Pace(plan.predicted, plan.taken, None if plan.begun is None else now - plan.begun)
            for plan in self._plans.values()
            if not plan.done or plan.taken is not None
        ]
        return seconds_left(paces, self.side_by_side)
