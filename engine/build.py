"""Bundle → plans: which are missing or stale and why, and their builds, side by side, a process each.

Does not know how a plan is compiled (engine/compile.py) nor imports what compiling needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import msgspec

from engine.binding import Precision
from engine.bundle import Bundle, graph_files, load_bundle
from engine.errors import BuildFailed, OptionInvalid, PlanError, PlanMissing
from engine.job import Job
from engine.machine import usable_cores
from engine.plan import (
    PlanInfo,
    build_remedy,
    check_identity,
    engines_folder,
    identity_of,
    plan_path,
    read_info,
    verified_plan,
)
from engine.processes import run_jobs
from engine.profiles import Profile, parse_profiles
from engine.publish import publish_info, sweep, unwritable
from engine.site import Site, site_of
from engine.target import parse_target

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

    def __str__(self) -> str:
        """As a line: `built denoiser 256@2 in 31.4 s (no plan)`."""
        took = "" if self.seconds is None else f" in {self.seconds:.1f} s"
        return f"{self.kind} {self.graph} {self.profile}{took} ({self.reason})"


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

    target: `tensorrt`, `tensorrt_rtx` or `tensorrt_rtx:8.6,8.9`.
    jobs: builds side by side; None: one for each core that this process may use. For `tensorrt` too, though its kernels
    are then timed on a GPU that other builds use: emoji's five plans took as long as the slowest, 231 s (8.6.0, H100,
    16 cores). `jobs=1` times each in peace.
    Returns the info of every plan, kept ones too, profile by profile. A build that fails lets those that run finish.
    Raises BundleError, InvalidInput, BackendUnavailable, BuildFailed, ExtraMissing or OutputError.
    """
    if jobs is not None and jobs < 1:
        raise OptionInvalid("jobs", actual=str(jobs), allowed="1 or more", remedy="Leave it out for one a core.")
    bundle, asked = load_bundle(folder), parse_target(target)
    wanted_profiles = parse_profiles(list(profiles), bundle)
    site = site_of(asked)
    wanted = plan_jobs(folder, bundle, site, wanted_profiles, precision)
    with _lock(engines_folder(folder) / site.target.folder):
        looked = [_look(job, build_remedy(folder, target, job.identity.profile)) for job in wanted]
        return _build(looked, usable_cores() if jobs is None else jobs, on_progress or (lambda _: None))


def plan_jobs(folder: Path, bundle: Bundle, site: Site, profiles: list[Profile], precision: Precision) -> list[Job]:
    """The jobs that make every plan of the profiles, needed or not. Raises OptionInvalid."""
    target, graphs = site.target, bundle.graphs(precision)
    assert target.version is not None
    return [
        Job(
            folder=str(folder), graph=graph, machine=site.machine,
            files={name: bundle.files[name] for name in graph_files(bundle, graph)},
            identity=identity_of(
                bundle, graph, precision, profile, target.flavour, target.version, site.capabilities
            ),
            plan=str(plan_path(folder, target.folder, profile, graph.name)),
        )
        for profile in profiles
        for graph in graphs
    ]  # fmt: skip


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
