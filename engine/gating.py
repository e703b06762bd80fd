"""After the builds: what the parity gate finds goes into plan.json, and a plan that it rejects is set aside.

Does not know how plans are compared (engine/gate.py); that runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.compare import error_text
from engine.errors import BuildFailed
from engine.job import GateJob, GateReply, Job
from engine.plan import PlanInfo, found_counts
from engine.processes import run_gate
from engine.progress import Progress
from engine.publish import forget_rejected, publish_info, set_aside
from engine.verdict import NOT_YET, Comparison, Verdict
from engine.wanted import Asked, reference_sha256

Infos = dict[str, PlanInfo]
"""The plans of a build by path."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A plan that was set aside: what it was, the verdict, and where the report is."""

    info: PlanInfo
    report: Path


class Gate:
    """Judges plans of one build. infos: all of its plans, whose verdicts it replaces as it goes.

    rejected: what was set aside. broken: gates that crashed or hung, for which no one plan could be blamed.
    """

    def __init__(self, asked: Asked, infos: Infos, progress: Progress) -> None:
        self._asked, self._infos, self._progress = asked, infos, progress
        self.rejected: list[Rejected] = []
        self.broken: list[BuildFailed] = []

    def judge(self, jobs: Sequence[Job]) -> None:
        """Judge the plans of every set in which one is unverified and could be compared."""
        sets: dict[Path, list[Job]] = {}
        for job in jobs:
            sets.setdefault(Path(job.plan).parent, []).append(job)
        for members in sets.values():
            if not self._asked.site.runs_here:
                elsewhere = Verdict(status="unverified", reason=self._asked.site.elsewhere)
                new = [job for job in members if is_open(before := self._infos[job.plan].verdict)
                       and before != elsewhere]  # fmt: skip
                self._put(new, {job.plan: elsewhere for job in new})
            elif any(is_open(self._infos[job.plan].verdict) for job in members):
                self._put(members, self._compared(members))

    def _compared(self, members: list[Job]) -> dict[str, Verdict]:
        """The verdicts on the plans of a set, by path."""
        reply = self._reply(members)
        if reply.broken is not None:
            reply = self._one_by_one(members, reply)
        verdicts = {job.plan: self._verdict(reply, job) for job in members}
        rejected = [job for job in members if verdicts[job.plan].status == "rejected"]
        return verdicts if not rejected else {job.plan: self._beside(rejected, job, verdicts) for job in members}

    def _reply(self, members: Sequence[Job]) -> GateReply:
        """What the gate says of some plans of a set."""
        plans: dict[str, tuple[str, ...]] = {}
        for job in members:
            plans[job.graph.name] = (*plans.get(job.graph.name, ()), job.plan)
        identity = members[0].identity
        return run_gate(GateJob(
            folder=str(self._asked.folder), flavour=identity.flavour, precision=identity.precision,
            profiles=identity.profiles, plans=plans, tolerance=self._asked.tolerance,
        ), self._progress.checking(identity.profiles))  # fmt: skip

    def _one_by_one(self, members: Sequence[Job], whole: GateReply) -> GateReply:
        """After a gate that broke: each graph by itself, a prologue with its graph. One that crashes it is rejected.

        Where none does, or all do, or the gate hung, no one graph is to blame: that goes into `broken`.
        """
        groups: dict[str, list[Job]] = {}
        for job in members:
            groups.setdefault(job.graph.hoisted_from or job.graph.name, []).append(job)
        replies = {}
        if whole.broken == "crash":
            replies = {name: self._reply(group) if len(groups) > 1 else whole for name, group in groups.items()}
        verdicts: dict[str, Verdict] = {}
        crashed = [name for name, reply in replies.items() if reply.broken == "crash"]
        for name, reply in replies.items():
            verdicts |= reply.verdicts
            if name in crashed and reply.failure is not None:
                verdict = Verdict(status="rejected", reason=f"it takes the gate down: {reply.failure.actual}")
                verdicts |= dict.fromkeys((job.graph.name for job in groups[name]), verdict)
        if crashed and (len(crashed) < len(groups) or len(groups) == 1):
            return GateReply(verdicts=verdicts)
        self.broken.append(_broken(members, whole))
        return whole

    def _beside(self, rejected: Sequence[Job], job: Job, said: Mapping[str, Verdict]) -> Verdict:
        """The verdict on a plan of a set in which others are rejected, so that the loop was not compared.

        It takes back nothing that was compared before. Where an older chain stays in use for a rejected one, the plan
        is to be compared with that.
        """
        before, now = self._infos[job.plan].verdict, said[job.plan]
        if now.status == "rejected":
            return now
        if not is_open(before):
            return before
        older = any(found_counts(Path(one.plan).parent, one.graph.name) != [one.identity.part[1]] for one in rejected)
        return NOT_YET if older else now

    def _verdict(self, reply: GateReply, job: Job) -> Verdict:
        """What the gate said of a plan; a verdict that is there stays where it said nothing new."""
        said = None if reply.failure is not None else reply.verdicts.get(job.graph.name)
        if said is not None:
            machine = said.machine or self._asked.site.gpu
            return msgspec.structs.replace(said, machine=machine, reference=reference_sha256(self._asked.bundle))
        reason = "the parity gate said nothing of it"
        if reply.failure is not None:
            reason = f"the parity gate could not run: {reply.failure.subject}: {reply.failure.actual}"
        before = self._infos[job.plan].verdict
        return Verdict(status="unverified", reason=reason) if is_open(before) else before

    def _put(self, jobs: Iterable[Job], verdicts: Mapping[str, Verdict]) -> None:
        for job in jobs:
            plan, before = Path(job.plan), self._infos[job.plan]
            info = msgspec.structs.replace(before, verdict=verdicts[job.plan])
            self._infos[job.plan] = info
            if info.verdict.status == "rejected":
                self.rejected.append(Rejected(info, set_aside(plan, info)))
                self._progress.judged(job.plan, "rejected", info.verdict.reason)
                continue
            if info.verdict != before.verdict:
                publish_info(plan, info)
            if info.verdict.status == "passed":
                forget_rejected(plan)
            self._progress.judged(job.plan, "checked", info.verdict.text)


def is_open(verdict: Verdict) -> bool:
    """Whether nothing was compared yet, though it might be: never, interrupted, or where the gate could not run."""
    return verdict.status == "unverified" and verdict.machine is None


def _broken(members: Sequence[Job], reply: GateReply) -> BuildFailed:
    """What a build ends with whose gate crashed or hung."""
    assert reply.failure is not None
    return BuildFailed(
        f"the parity gate of profile {' + '.join(members[0].identity.profiles)}", actual=reply.failure.actual,
        allowed="verdicts", remedy="The plans are there, but were not compared: build again, or try another TensorRT.",
    )  # fmt: skip


def worst(verdict: Verdict) -> Comparison | None:
    """The comparison that is furthest from what is allowed."""
    missed = [comparison for comparison in verdict.comparisons if not comparison.passed]
    return max(missed, key=lambda one: (one.not_finite, one.error / (one.allowed or 1.0)), default=None)


def rejection(rejected: Sequence[Rejected]) -> BuildFailed:
    """What a build ends with whose plans were rejected, all else being done."""
    first = rejected[0]
    identity, missed = first.info.identity, worst(first.info.verdict)
    actual, allowed = first.info.verdict.reason, "what the parity gate allows"
    if missed is not None:
        error = error_text(missed) if missed.error < 0 else f"an error of {missed.error:.2e}"
        actual, allowed = f"{error} in {missed.output!r}, case {missed.case!r}", f"an error of {missed.allowed:.2e}"
    others = ", ".join(f"{one.info.identity.name} {' + '.join(one.info.identity.profiles)}" for one in rejected[1:])
    return BuildFailed(
        f"graph {identity.name!r}, profile {' + '.join(identity.profiles)}, against the reference",
        actual=actual + (f" (rejected too: {others})" if others else ""), allowed=allowed,
        remedy=f"The plan is set aside, the report is {first.report}; try `--precision fp32` or another TensorRT, or a "
        "higher `--tolerance` for plans that are right but round more.",
    )  # fmt: skip
