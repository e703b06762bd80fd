"""A build as data: what a worker process is told, and what it replies."""

from __future__ import annotations

from engine import errors
from engine.binding import Graph
from engine.bundle import FileEntry, Struct
from engine.errors import ZturboError
from engine.machine import Machine
from engine.plan import Identity, PlanInfo


class Job(Struct, frozen=True):
    """One plan to build: from which files of the bundle at `folder`, as what, to where."""

    folder: str
    graph: Graph
    files: dict[str, FileEntry]
    identity: Identity
    machine: Machine | None
    plan: str


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
