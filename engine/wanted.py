"""Which plans are asked for, and of each whether the one that is there may stay, and why not. Builds nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engine.binding import Graph, PlanPrecision, variant_of
from engine.bundle import Bundle, graph_files
from engine.chain import cut_wires, misfit
from engine.errors import OptionInvalid, PlanError, PlanMissing
from engine.job import Job
from engine.parts import denoiser_of
from engine.plan import (
    WHOLE,
    Options,
    Part,
    PlanInfo,
    check_identity,
    engines_folder,
    found_counts,
    identity_of,
    plan_path,
    read_info,
    verified_plan,
)
from engine.profiles import Profile
from engine.progress import Kind
from engine.publish import rejected_info_path
from engine.site import Site
from engine.verdict import NOT_YET, TOLERANCE, Verdict

Profiles = tuple[Profile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All that a build was asked for.

    sets: the profiles of each set of plans, which has a folder of its own. options: without those that change nothing
    here. parts: None for auto. cores: how many builds may run side by side. memory_bytes: of the host, for builds.
    tolerance: the parity gate's. without: optional graphs that get no plan.
    """

    folder: Path
    bundle: Bundle
    site: Site
    sets: tuple[Profiles, ...]
    precision: PlanPrecision
    options: Options | None
    parts: int | None
    cores: int
    memory_bytes: int | None
    tolerance: float = TOLERANCE
    without: tuple[str, ...] = ()

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs that plans are built from. Raises OptionInvalid for one to be left out that a picture needs."""
        graphs = self.bundle.graphs(variant_of(self.precision))
        optional = [graph.name for graph in graphs if graph.optional]
        if needed := [name for name in self.without if name not in optional]:
            raise OptionInvalid(
                "without", actual=needed[0], allowed=", ".join(optional) or "nothing: every graph is needed",
                remedy="Leave out graphs alone that not every picture needs.",
            )  # fmt: skip
        return tuple(graph for graph in graphs if graph.name not in self.without)

    @property
    def target_folder(self) -> Path:
        """Where all of the target's sets are."""
        return engines_folder(self.folder) / self.site.target.folder

    def plan(self, profiles: Profiles, graph: Graph, part: Part = WHOLE) -> Path:
        """Where a plan of a set lies. Raises ProfileInvalid for a set whose folder's name would be too long."""
        return plan_path(self.folder, self.site.target.folder, profiles, self.precision, graph.name, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A plan that is asked for.

    found: the one that is there, if it may stay. before: what its plan.json said, if it may not. reason: why it is kept
    or built. nodes: of its part, where they were counted.
    """

    job: Job
    found: PlanInfo | None
    kind: Kind
    reason: str
    error: PlanError | None = None
    before: PlanInfo | None = None
    nodes: int | None = None

    @property
    def seconds(self) -> float | None:
        """That a build of it took before, as far as a plan.json that is stale now tells."""
        return None if self.before is None else self.before.seconds

    @property
    def rejected(self) -> bool:
        """Whether the parity gate rejected what is still in place."""
        return self.before is not None and self.before.verdict.status == "rejected"

    def stale(self, reason: str) -> Wanted:
        """The same, to be built again for this reason."""
        return replace(self, found=None, before=self.found or self.before, kind="built", reason=reason, error=None)

    @property
    def plan(self) -> Path:
        """Where the plan is, or is to be."""
        return Path(self.job.plan)


Parts = Callable[[Asked, Graph, int | None], tuple[int, int | None]]
"""How a graph is cut of which nothing valid is there, None or a number being asked for: parts, and nodes of each."""


def wanted_plans(asked: Asked, parts: Parts, *, cut: bool = True) -> list[Wanted]:
    """Every plan that is asked for, set by set, graph by graph, part by part. Raises what parts raises.

    cut: where parts of a chain are missing, cut the graph to see whether the others are those of the same cut.
    """
    return [
        item for profiles in asked.sets for graph in asked.graphs
        for item in _chain(asked, profiles, graph, parts, cut)
    ]  # fmt: skip


def plan_jobs(asked: Asked, profiles: Profiles, graph: Graph, parts: int = 1) -> list[Job]:
    """The jobs that make the plans of one graph, needed or not."""
    bundle, site = asked.bundle, asked.site
    target, files = site.target, graph_files(bundle, graph)
    assert target.version is not None

    def job(part: Part) -> Job:
        return Job(
            folder=str(asked.folder), graph=graph, files={name: bundle.files[name] for name in files},
            identity=identity_of(
                bundle, graph, asked.precision, profiles, target.flavour, target.version or "", site.capabilities, part
            ),
            options=asked.options or Options(), machine=site.machine, timing_cache=timing_cache(asked),
            plan=str(asked.plan(profiles, graph, part)),
        )  # fmt: skip

    return [job((index, parts)) for index in range(1, parts + 1)]


def timing_cache(asked: Asked) -> str | None:
    """The file in which builds for this TensorRT, GPU and CUDA keep what they timed; None where that gains nothing."""
    machine = asked.site.machine
    if machine is None or not asked.site.dialect.has_timing_cache:
        return None
    gpu = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return str(asked.target_folder / f"timing-{gpu}-cuda{machine.cuda}.cache")


def replaced_plans(asked: Asked, profiles: Profiles, graph: Graph, parts: int) -> list[Path]:
    """The plans of a graph in a set that belong to chains of other numbers of parts than this, also single files."""
    folder = asked.plan(profiles, graph).parent
    name = re.compile(rf"({re.escape(graph.name)}(?:\.[0-9]+of([1-9][0-9]{{0,2}}))?\.plan)(?:\.rejected)?(?:\.json)?")
    matches = [name.fullmatch(path.name) for path in folder.glob(f"{graph.name}.*")]
    return sorted({folder / match[1] for match in matches if match is not None and int(match[2] or 1) != parts})


def look(job: Job, asked: Asked) -> Wanted:
    """Whether the plan that is there may stay: its identity, its options and its bytes are what they must be.

    Whether it fits the other parts of its chain is not seen here.
    """
    path, expected, info = Path(job.plan), job.identity, None
    try:
        info = read_info(path, "")
        renewed = msgspec.structs.replace(info.identity, bundle_sha256=expected.bundle_sha256)
        check_identity(path, renewed, expected, "")
        if (reason := _unwanted(info, job, asked)) is not None:
            return Wanted(job=job, found=None, kind="built", reason=reason, before=info)
        verified_plan(path, info, "")
    except PlanError as error:
        return Wanted(job=job, found=None, kind="built", reason=_why(error, path), error=error, before=info)
    kept = msgspec.structs.replace(info, identity=renewed, verdict=_still(info.verdict, asked))
    if renewed == info.identity:
        return Wanted(job=job, found=kept, kind="kept", reason="valid")
    return Wanted(job=job, found=kept, kind="renewed", reason="the bundle changed, this graph did not")


def _unwanted(info: PlanInfo, job: Job, asked: Asked) -> str | None:
    """Why a plan is not wanted though it is what it says."""
    if info.verdict.status == "rejected":
        return info.verdict.text
    if asked.options is not None and info.options != job.options:
        return f"options: {info.options.text}, now {job.options.text}"
    return None


def reference_sha256(bundle: Bundle) -> str:
    """The identity of all that the parity gate compares with: the arrays, and what fp16 may lose."""
    described = msgspec.json.encode(bundle.reference, order="sorted")
    return hashlib.sha256(described + bundle.files[bundle.reference.file].sha256.encode()).hexdigest()


def _still(verdict: Verdict, asked: Asked) -> Verdict:
    """A verdict here and now: it holds where the gate would compare with the same and allow as much, on a GPU of the
    same capability.
    """
    judge, here = verdict.machine, asked.site.gpu
    if judge is None:
        return verdict
    if verdict.reference != reference_sha256(asked.bundle) or verdict.tolerance > asked.tolerance:
        return NOT_YET
    if asked.site.runs_here and here is not None and judge.compute_capability != here.compute_capability:
        reason = f"compared on compute capability {judge.compute_capability}, not on {here.compute_capability}"
        return Verdict(status="unverified", reason=reason)
    return verdict


def _why(error: PlanError, path: Path) -> str:
    if isinstance(error, PlanMissing):
        return f"{error.actual}, one was rejected before" if rejected_info_path(path).exists() else error.actual
    what = error.subject.removeprefix(f"{path}, ")
    return error.actual if what == error.subject else f"{what}: {error.actual}, now {error.allowed}"


def _chain(asked: Asked, profiles: Profiles, graph: Graph, parts: Parts, cut: bool) -> list[Wanted]:
    """The plans of a graph. auto keeps the number of parts of a chain of which anything valid is there."""
    folder = asked.plan(profiles, graph).parent

    def look_at(count: int) -> list[Wanted]:
        return _fitting(asked, graph, [look(job, asked) for job in plan_jobs(asked, profiles, graph, count)], cut)

    explicit = asked.parts if graph == denoiser_of(asked.bundle, asked.graphs) else None
    counts = [explicit] if explicit is not None else found_counts(folder, graph.name)
    best = max((look_at(count) for count in counts), key=_worth, default=[])
    complete, valid = _worth(best)
    if complete or (valid and explicit is None):
        return best
    count, nodes = parts(asked, graph, explicit)
    return [replace(item, nodes=nodes) for item in (best if explicit is not None else look_at(count))]


def _fitting(asked: Asked, graph: Graph, chain: list[Wanted], cut: bool) -> list[Wanted]:
    """The chain without valid plans that are of another cut than the rest, or than the rest would be."""
    wires = [item.found.wires for item in chain if item.found is not None]
    if len(wires) == len(chain):
        reason = misfit(graph, wires)
        return chain if reason is None else [item.stale(f"cut at different places: {reason}") for item in chain]
    if not wires or not cut:
        return chain
    try:
        now = cut_wires(asked.folder, graph, [item.job.identity.part for item in chain])
    except (ImportError, OSError, ValueError):
        return chain  # the builds of what is missing say what is wrong
    pairs = zip(chain, now, strict=True)
    return [
        item.stale("cut at another place") if item.found is not None and item.found.wires != new else item
        for item, new in pairs
    ]


def _worth(chain: list[Wanted]) -> tuple[bool, int]:
    valid = sum(item.found is not None for item in chain)
    return 0 < valid == len(chain), valid
