"""Bundle → plans: which are missing or stale and why, and their builds, side by side, a process each.

Does not know how a plan is compiled (engine/compile.py) nor imports what compiling needs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import msgspec

from engine.binding import Precision
from engine.bundle import Bundle, load_bundle
from engine.cuda import Cuda
from engine.dialect import Dialect, load_dialect
from engine.errors import BuildFailed, OptionInvalid, PlanError, PlanMissing
from engine.job import Job
from engine.machine import Machine, machine_of
from engine.plan import (
    PlanInfo,
    build_remedy,
    check_identity,
    engines_folder,
    graph_files,
    identity_of,
    plan_path,
    read_info,
    verified_plan,
)  # fmt: skip
from engine.processes import run_jobs
from engine.profiles import Profile, parse_profiles
from engine.publish import publish_info, sweep, unwritable
from engine.target import Target, parse_target

Kind = Literal["kept", "renewed", "started", "built"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """Something that happened to one plan.

    kind: `kept` (valid as it is), `renewed` (only the rest of the bundle changed: a new plan.json beside the plan as
    it was), `started`, `built`. reason: why it is kept or built. seconds: of a finished build. done, total: plans.
    """

    kind: Kind
    graph: str
    profile: str
    reason: str
    seconds: float | None
    done: int
    total: int


OnProgress = Callable[[BuildEvent], None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A plan that is asked for. found: the one that is there, if it may stay. reason: why it is kept or built."""

    job: Job
    found: PlanInfo | None
    kind: Kind
    reason: str


def build_engines(
    folder: Path, target: str, profiles: Sequence[str], *, precision: Precision = "fp16", jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[PlanInfo]:  # fmt: skip
    """Build a plan for every graph of a bundle and every profile, where a valid one is not there already.

    target: `tensorrt`, `tensorrt_rtx` or `tensorrt_rtx:8.6,8.9`. jobs: builds side by side; None: one a CPU.
    Returns the info of every plan, kept ones too, profile by profile. A build that fails lets those that run finish.
    Raises BundleError, InvalidInput, BackendUnavailable, BuildFailed or OutputError.
    """
    if jobs is not None and jobs < 1:
        raise OptionInvalid("jobs", actual=str(jobs), allowed="1 or more", remedy="Leave it out for one a CPU.")
    bundle, wanted_target = load_bundle(folder), parse_target(target)
    wanted = plan_jobs(folder, bundle, wanted_target, parse_profiles(list(profiles), bundle), precision)
    with _lock(engines_folder(folder) / wanted_target.folder):
        looked = [_look(job, build_remedy(folder, target, job.identity.profile)) for job in wanted]
        return _build(looked, jobs or os.cpu_count() or 1, on_progress or (lambda _: None))


def plan_jobs(folder: Path, bundle: Bundle, target: Target, profiles: list[Profile], precision: Precision) -> list[Job]:
    """The jobs that make every plan of the profiles, needed or not. Raises OptionInvalid or BackendUnavailable."""
    graphs, dialect = bundle.graphs(precision), load_dialect(target.flavour)
    machine = None if dialect.flavour.portable else machine_of(Cuda())
    capabilities = _capabilities(dialect, target, machine)
    return [
        Job(
            folder=str(folder), graph=graph, machine=machine,
            files={name: bundle.files[name] for name in graph_files(bundle, graph)},
            identity=identity_of(bundle, graph, precision, profile, target.flavour, dialect.version, capabilities),
            plan=str(plan_path(folder, target.folder, profile, graph.name)),
        )
        for profile in profiles
        for graph in graphs
    ]  # fmt: skip


def _capabilities(dialect: Dialect, target: Target, machine: Machine | None) -> tuple[str, ...]:
    if machine is not None:
        return (machine.compute_capability,)
    known = dialect.compute_capabilities()
    for capability in target.capabilities:
        if capability not in known:
            raise OptionInvalid(
                f"target '{target}'", actual=f"compute capability {capability}", allowed=", ".join(known),
                remedy=f"These are what {dialect.flavour.title} {dialect.version} builds for.",
            )  # fmt: skip
    return target.capabilities or known


def _look(job: Job, remedy: str) -> _Wanted:
    """Whether the plan that is there may stay."""
    path, expected = Path(job.plan), job.identity
    try:
        info = read_info(path, remedy)
        renewed = msgspec.structs.replace(info.identity, bundle_sha256=expected.bundle_sha256)
        check_identity(path, renewed, expected, remedy)
        verified_plan(path, info, remedy)
    except PlanMissing as error:
        return _Wanted(job, None, "built", error.actual)
    except PlanError as error:
        return _Wanted(job, None, "built", _why(error, path))
    if renewed == info.identity:
        return _Wanted(job, info, "kept", "valid")
    info = msgspec.structs.replace(info, identity=renewed)
    return _Wanted(job, info, "renewed", "the bundle changed, this graph did not")


def _why(error: PlanError, path: Path) -> str:
    what = error.subject.removeprefix(f"{path}, ")
    return error.actual if what == error.subject else f"{what}: {error.actual}, now {error.allowed}"


@contextlib.contextmanager
def _lock(target_folder: Path) -> Iterator[None]:
    """Hold the lock of a target's folder, made where it is missing; the system frees it when its holder dies."""
    lock = filelock.FileLock(target_folder / ".lock", blocking=False)
    try:
        target_folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise BuildFailed(
            str(target_folder), actual="another build of this target runs", allowed="one at a time",
            remedy="Wait for it, or end it.",
        ) from error  # fmt: skip
    except OSError as error:
        raise unwritable(target_folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _build(wanted: list[_Wanted], jobs: int, tell: OnProgress) -> list[PlanInfo]:
    infos: dict[str, PlanInfo] = {}

    def event(kind: Kind, item: _Wanted, seconds: float | None = None) -> None:
        identity = item.job.identity
        happened = BuildEvent(
            kind=kind, graph=identity.graph, profile=identity.profile, reason=item.reason, seconds=seconds,
            done=len(infos), total=len(wanted),
        )  # fmt: skip
        tell(happened)

    for item in wanted:
        if item.found is not None:
            if item.kind == "renewed":
                publish_info(Path(item.job.plan), item.found)
            infos[item.job.plan] = item.found
            event(item.kind, item)
    missing = {item.job.plan: item for item in wanted if item.found is None}
    for folder in {Path(plan).parent for plan in missing}:
        sweep(folder)
    pending = [item.job for item in missing.values()]
    for job, info in run_jobs(pending, jobs, lambda job: event("started", missing[job.plan])):
        infos[job.plan] = info
        event("built", missing[job.plan], info.seconds)
    return [infos[item.job.plan] for item in wanted]
