"""A build as data: what a worker process is told, and what it replies."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine import errors
from engine.binding import Graph, PlanPrecision
from engine.errors import ZturboError
from engine.machine import Machine
from engine.plan import Identity, Options, PlanInfo
from engine.schema import FileEntry, Struct
from engine.verdict import TOLERANCE, Verdict


class Job(Struct, frozen=True):
    """One plan to build: from which files of the bundle at `folder`, as what, to where.

    graph: the whole graph, also where identity.part asks for a part of it; so are identity.shapes.
    timing_cache: a file that builds for the same target, GPU and CUDA share; None for none.
    """

    folder: str
    graph: Graph
    files: dict[str, FileEntry]
    identity: Identity
    options: Options
    machine: Machine | None
    plan: str
    timing_cache: str | None


Broken = Literal["crash", "hang"]
"""crash: a signal that a process gets for what it does itself. hang: longer than a gate may take."""


class GateJob(Struct, frozen=True):
    """The plans of one set to compare with the reference.

    plans: by graph, a path for each part in order; of some graphs only, where those of all took the gate down.
    tolerance: how many times what torch's own fp16 loses a plan may lose.
    """

    folder: str
    flavour: str
    precision: PlanPrecision
    profiles: tuple[str, ...]
    plans: dict[str, tuple[str, ...]]
    tolerance: float = TOLERANCE


class GateReply(Struct, frozen=True):
    """What came of a GateJob: {graph: its verdict}, or why the gate could not run.

    broken: what the failure is where plans are to be suspected of it.
    """

    verdicts: dict[str, Verdict] = msgspec.field(default_factory=dict)
    failure: Failure | None = None
    broken: Broken | None = None


class Failure(Struct, frozen=True, kw_only=False):
    """An error of engine/errors.py."""

    kind: str
    subject: str
    actual: str
    allowed: str
    remedy: str


class Reply(Struct, frozen=True):
    """What came of a job: one of the two."""

    info: PlanInfo | None = None
    failure: Failure | None = None

    def result(self) -> PlanInfo:
        """The plan's info; raises the failure as the error it was."""
        if self.info is not None:
            return self.info
        assert self.failure is not None
        failure = self.failure
        kind: type[ZturboError] = getattr(errors, failure.kind)
        raise kind(failure.subject, actual=failure.actual, allowed=failure.allowed, remedy=failure.remedy)


def failed(error: ZturboError) -> Reply:
    """An error as a reply."""
    kind, parts = type(error).__name__, (error.subject, error.actual, error.allowed, error.remedy)
    return Reply(failure=Failure(kind, *parts))
