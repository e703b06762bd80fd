"""With how many threads, and waiting how, torch paints fastest on this CPU: tried, for no rule holds on all machines.

Spinning threads are 1.75 times as fast on quiet cores and eight times as slow where another program wants one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import Child, ContenderFailed

POLICY = "OMP_WAIT_POLICY"
Environment = dict[str, str | None]
PICTURES = 3
CLEARLY = 1.1
"""What another program does in a moment may make fewer threads look faster."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Threads, OpenMP's wait policy (`default` leaves the variable out), and the best seconds of a picture with them.

    seconds: None where it did not end in time.
    """

    threads: int
    policy: str
    seconds: float | None

    @property
    def environment(self) -> Environment:
        """OMP_NUM_THREADS would cap what a contender may ask for."""
        return {"OMP_NUM_THREADS": None, POLICY: None if self.policy == "default" else self.policy}

    def taken_by(self, spec: Spec) -> Spec:
        """A contender with these threads."""
        settings = {**spec.settings, "threads": self.threads}
        return replace(spec, settings=settings, environment={**spec.environment, **self.environment})

    @property
    def text(self) -> str:
        """In one line."""
        found = "too long" if self.seconds is None else f"{self.seconds:.3f} s"
        return f"{self.threads} threads, {self.policy}: {found}"


def fewer(cores: int) -> int:
    """Half as many: cores that are two threads of one do not help a product of matrices."""
    return max(1, cores // 2)


def best_threads(
    spec: Spec, plan: Plan, folder: Path, cores: int, on_trial: Callable[[Trial], None]
) -> tuple[Trial, list[Trial]]:
    """The fastest of the policies on all cores, and fewer threads where they are CLEARLY faster; and all trials."""
    trials: list[Trial] = []

    def attempt(threads: int, policy: str) -> None:
        trials.append(_tried(spec, plan, folder, Trial(threads, policy, None)))
        on_trial(trials[-1])

    for policy in plan.policies:
        attempt(cores, policy)
    if cores > 1:
        attempt(fewer(cores), fastest(trials).policy)
        best = fastest(trials[:-1])
        if trials[-1].seconds is None or (best.seconds is not None and trials[-1].seconds * CLEARLY > best.seconds):
            return best, trials
    return fastest(trials), trials


def fastest(trials: Sequence[Trial]) -> Trial:
    """The one with the fewest seconds; the first where none ended."""
    return min(trials, key=lambda trial: float("inf") if trial.seconds is None else trial.seconds)


def _tried(spec: Spec, plan: Plan, folder: Path, trial: Trial) -> Trial:
    asked, steps = trial.taken_by(spec), min(plan.steps)
    try:
        with Child(asked, folder / "threads.log") as child:
            child.open(plan)
            seconds = [child.paint(steps, plan.picture_s)["seconds"] for _ in range(1 + PICTURES)]
    except ContenderFailed:
        return trial
    return replace(trial, seconds=min(seconds[1:]))
