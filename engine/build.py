"""Bundle → plans: what is missing or stale is built, side by side, a process each; then the parity gate judges it.

Does not know how a plan is compiled (engine/compile.py) nor imports what compiling needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import filelock

from engine.binding import Graph, PlanPrecision
from engine.bundle import load_bundle
from engine.errors import BuildFailed, OptionInvalid
from engine.estimate import rates, weights_bytes
from engine.gating import Gate, rejection
from engine.job import Job
from engine.machine import free_memory, usable_cores
from engine.parts import count_parts
from engine.plan import Options, PlanInfo, found_counts
from engine.preflight import preflight, resources_of
from engine.processes import run_jobs
from engine.profiles import Profile, parse_profiles
from engine.progress import BuildEvent, OnProgress, Progress
from engine.publish import publish_info, remove, sweep, unwritable
from engine.site import Site, site_of
from engine.target import parse_target
from engine.verdict import TOLERANCE
from engine.wanted import Asked, Wanted, look, plan_jobs, replaced_plans, wanted_plans

__all__ = ["BuildEvent", "OnProgress", "build_engines"]

MAX_LEVEL = 5
MAX_TOLERANCE = 16.0
"""Of the gate: past this a plan would pass that is as far off as a wrong one."""
DEFAULTS = Options()


def build_engines(
    folder: Path, target: str, profiles: Sequence[str], *, precision: PlanPrecision = "fp16",
    options: Options = DEFAULTS, shared: bool = False, parts: int | None = None, jobs: int | None = None,
    tolerance: float = TOLERANCE, without: Sequence[str] = (), on_progress: OnProgress = lambda _: None,
) -> list[PlanInfo]:  # fmt: skip
    """Build a plan for every graph of a bundle and every profile, where a valid one is not there already.

    target: `tensorrt`, `tensorrt_rtx` or `tensorrt_rtx:8.6,8.9`. profiles: texts, or names of sets of them.
    shared: one plan for each graph, with all the profiles in it. parts: of the denoiser; None: as memory and cores
    make it good, or as a valid one is there. The GPU is the first of those that CUDA_VISIBLE_DEVICES leaves.
    jobs: builds side by side; None: one for each core that this process may use. For `tensorrt` too, though its kernels
    are then timed on a GPU that other builds use: emoji's six plans took as long as the slowest, 231 s (8.6.0, H100,
    16 cores). `jobs=1` times each in peace.
    tolerance: how many times what torch's own fp16 loses against fp32 an fp16 plan may lose to pass the parity gate.
    without: graphs that not every picture needs, to get no plan. on_progress: what it raises ends the build within a
    second or so; what is finished stays.
    Returns the info of every plan, kept ones too, profile by profile. A build that fails lets those that run finish.
    Raises BundleError, InvalidInput, BackendUnavailable, BuildFailed, ExtraMissing or OutputError.
    """
    check_options(options, parts, jobs)
    check_tolerance(tolerance)
    bundle, wanted_target = load_bundle(folder), parse_target(target)
    read = parse_profiles(profiles, bundle)
    site = site_of(wanted_target)
    asked = Asked(
        folder=folder, bundle=bundle, site=site, sets=profile_sets(read, shared), precision=precision,
        options=_options(site, precision, options), parts=parts, cores=usable_cores() if jobs is None else jobs,
        memory_bytes=free_memory(), tolerance=tolerance, without=tuple(without),
    )  # fmt: skip
    _ = [asked.plan(one, graph) for one in asked.sets for graph in asked.graphs]  # raises for what cannot be named
    progress = Progress(on_progress)
    if options != asked.options:
        progress.remark(f"{site.dialect.flavour.title} builds the same at any level and workspace: they are left out")
    with lock(asked.target_folder):
        for part in (asked.target_folder, *asked.target_folder.glob("*/")):
            sweep(part)  # before the disk is looked at
        return _Build(asked, wanted_plans(asked, _parts), progress).run()


def _parts(asked: Asked, graph: Graph, count: int | None) -> tuple[int, int | None]:
    return count_parts(
        asked.site.dialect, asked.precision, asked.folder, asked.bundle, graph, count, asked.cores, asked.memory_bytes
    )  # fmt: skip


def check_options(options: Options, parts: int | None, jobs: int | None) -> None:
    """Raise OptionInvalid for a number out of range."""
    for name, value, low, high in (
        ("level", options.level, 0, MAX_LEVEL), ("workspace", options.workspace_mib, 1, None),
        ("parts", parts, 1, None), ("jobs", jobs, 1, None),
    ):  # fmt: skip
        if value is not None and (value < low or (high is not None and value > high)):
            allowed = f"{low} or more" if high is None else f"{low} to {high}"
            raise OptionInvalid(name, actual=str(value), allowed=allowed, remedy="Leave it out for the default.")


def check_tolerance(tolerance: float) -> None:
    """Raise OptionInvalid for a tolerance of the gate that no plan could meet, or that judges nothing."""
    if not 1 <= tolerance <= MAX_TOLERANCE:
        raise OptionInvalid(
            "tolerance", actual=f"{tolerance:g}", allowed=f"1 to {MAX_TOLERANCE:g}", remedy="Leave it out for 2."
        )


def profile_sets(profiles: Sequence[Profile], shared: bool) -> tuple[tuple[Profile, ...], ...]:
    """The profiles of each folder of plans. Shared ones are put in one order, whatever order they were named in."""
    if not shared:
        return tuple((profile,) for profile in profiles)
    return (tuple(sorted(profiles, key=lambda profile: (profile.size, profile.text))),)


def _options(site: Site, precision: PlanPrecision, options: Options) -> Options:
    """The options that change a plan here. Raises OptionInvalid for a precision that cannot be built."""
    dialect = site.dialect
    if precision not in dialect.precisions(site.capabilities):
        raise _unbuildable(site, precision)
    return options if dialect.options_matter else DEFAULTS


def _unbuildable(site: Site, precision: PlanPrecision) -> OptionInvalid:
    """That this TensorRT lacks a precision, or some of the compute capabilities that plans are for do."""
    dialect, known = site.dialect, site.dialect.precisions(site.capabilities)
    actual, remedy = str(precision), f"These are what {dialect.flavour.title} {dialect.version} computes in."
    if precision in dialect.precisions():
        able = [one for one in site.capabilities if precision in dialect.precisions((one,))]
        lacking = ", ".join(one for one in site.capabilities if one not in able)
        actual, remedy = f"{precision}, which compute capability {lacking} lacks", "Choose another precision."
        if able:
            remedy = f"Use `--target {dialect.flavour.name}:{','.join(able)}`, or another precision."
    return OptionInvalid("precision", actual=actual, allowed=", ".join(known), remedy=remedy)


@contextlib.contextmanager
def lock(target_folder: Path) -> Iterator[None]:
    """Hold the lock of a target's folder, made where it is missing; the system frees it when its holder dies.

    Raises BuildFailed or OutputError.
    """
    held = filelock.FileLock(target_folder / ".lock", blocking=False)
    try:
        target_folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
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
        held.release()


class _Build:
    """One build, from what was looked at to verdicts."""

    def __init__(self, asked: Asked, wanted: list[Wanted], progress: Progress) -> None:
        self._asked, self._wanted, self._progress = asked, wanted, progress
        self._infos: dict[str, PlanInfo] = {}

    def run(self) -> list[PlanInfo]:
        """Build, judge, remove what is replaced; the infos of all plans."""
        for item in self._wanted:
            self._progress.add(item.job.plan, item.job.identity, item.reason, self._predicted(item))
        missing = [item.job for item in self._wanted if item.found is None]
        cleared = None
        if missing:
            free = resources_of(self._asked.site, self._asked.target_folder)
            cleared = preflight(missing, self._asked.cores, self._asked.site, free)
        self._keep()
        if cleared is not None:
            for remark in cleared.remarks:
                self._progress.remark(remark)
            self._build(missing, cleared.jobs)
        gate = Gate(self._asked, self._infos, self._progress)
        gate.judge([item.job for item in self._wanted])
        self._remove_replaced({rejected.info.identity.graph for rejected in gate.rejected})
        if gate.rejected:
            raise rejection(gate.rejected)
        if gate.broken:
            raise gate.broken[0]
        return [self._infos[item.job.plan] for item in self._wanted]

    def _predicted(self, item: Wanted) -> float | None:
        """Seconds that a build will take, as the plan before it did, or by the nodes."""
        rate = rates(self._asked.site.dialect).seconds_per_node
        by_nodes = None if rate is None or item.nodes is None else rate * item.nodes
        return item.seconds if item.seconds is not None else by_nodes

    def _keep(self) -> None:
        for item in self._wanted:
            if item.found is not None:
                if item.kind == "renewed":
                    publish_info(item.plan, item.found)
                self._infos[item.job.plan] = item.found
                self._progress.kept(item.job.plan, item.kind)

    def _build(self, missing: list[Job], side_by_side: int) -> None:
        """The heaviest first: the last to end decides how long all takes."""
        self._progress.side_by_side = side_by_side
        pending = sorted(missing, key=weights_bytes, reverse=True)
        started: Callable[[Job], None] = lambda job: self._progress.started(job.plan)  # noqa: E731
        for job, info in run_jobs(pending, side_by_side, started, self._progress.running):
            self._infos[job.plan] = info
            self._progress.built(job.plan, info.seconds)

    def _remove_replaced(self, rejected: set[str]) -> None:
        """Chains of other numbers of parts go once there is a whole one that was not rejected, with what is left of
        older ones. One that passed stays while the gate, which can run here, has not compared the new one.
        """
        chains: dict[tuple[Path, str], list[Job]] = {}
        for item in self._wanted:
            chains.setdefault((item.plan.parent, item.job.graph.name), []).append(item.job)
        for profiles in self._asked.sets:
            for graph in self._asked.graphs:
                chain = chains[self._asked.plan(profiles, graph).parent, graph.name]
                if graph.name not in rejected:
                    self._remove_others(profiles, graph, chain)

    def _remove_others(self, profiles: tuple[Profile, ...], graph: Graph, chain: list[Job]) -> None:
        count, folder = chain[0].identity.part[1], Path(chain[0].plan).parent
        passed = all(self._infos[job.plan].verdict.status == "passed" for job in chain)
        others = found_counts(folder, graph.name) if self._asked.site.runs_here and not passed else []
        kept = {plan for other in others if other != count for plan in self._passed(profiles, graph, other)}
        for plan in replaced_plans(self._asked, profiles, graph, count):
            if plan not in kept:
                remove(plan)

    def _passed(self, profiles: tuple[Profile, ...], graph: Graph, count: int) -> list[Path]:
        """The plans of a chain of so many parts that is valid, whatever it was built with, and passed; else none."""
        asked = replace(self._asked, options=None)
        found = [look(job, asked) for job in plan_jobs(asked, profiles, graph, count)]
        if not all(item.found is not None and item.found.verdict.status == "passed" for item in found):
            return []
        for item in found:
            if item.kind == "renewed" and item.found is not None:
                publish_info(item.plan, item.found)
        return [item.plan for item in found]
