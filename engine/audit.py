"""What a target's folder of plans is worth: of every plan whether it is there, valid and judged. Builds nothing.

Where the plans can run here, those that were not compared with the reference yet are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.binding import Graph, PlanPrecision
from engine.build import check_tolerance, lock, profile_sets
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, OptionInvalid, PlanMismatch, PlanMissing
from engine.gating import Gate
from engine.parts import denoiser_of
from engine.plan import DEFAULTS, PlanInfo, build_command, engines_folder, found_counts
from engine.profiles import found_sets, parse_profiles
from engine.progress import OnProgress, Progress
from engine.site import Site, site_of
from engine.target import Target, parse_target, target_from_folder
from engine.verdict import TOLERANCE
from engine.wanted import Asked, Wanted, wanted_plans

State = Literal["valid", "missing", "stale", "damaged", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One plan.

    reason: what is wrong, or what the parity gate says. command: what mends it; empty where it is valid.
    """

    target: str
    set: str
    plan: str
    path: Path
    state: State
    reason: str
    command: str


def audit(
    folder: Path, target: str | None = None, profiles: Sequence[str] | None = None, *, shared: bool = False,
    precision: PlanPrecision = "fp16", tolerance: float = TOLERANCE, without: Sequence[str] = (),
    on_progress: OnProgress = lambda _: None,
) -> list[Finding]:  # fmt: skip
    """Judge the plans of the profiles asked for, or where None are, of every set that there is a folder of.

    target: None for every one that there is a folder of. Where a target's TensorRT or GPU is not here, the folder's own
    name says what its plans are to be for. tolerance, without: as of `build_engines`. Raises BundleError, InvalidInput,
    BuildFailed, OutputError or BackendUnavailable.
    """
    check_tolerance(tolerance)
    bundle = load_bundle(folder)
    named = None if profiles is None else profile_sets(parse_profiles(profiles, bundle), shared)
    findings: list[Finding] = []
    for site in _sites(folder, target):
        target_folder = engines_folder(folder) / site.target.folder
        sets = found_sets(target_folder, bundle) if named is None else [(one, precision) for one in named]
        can_judge = site.runs_here and target_folder.is_dir()
        with lock(target_folder) if can_judge else contextlib.nullcontext():
            for one, kind in sets:
                asked = Asked(
                    folder=folder, bundle=bundle, site=site, sets=(one,), precision=kind, options=None, parts=None,
                    cores=1, memory_bytes=None, tolerance=tolerance, without=tuple(without),
                )  # fmt: skip
                findings += _set_findings(asked, on_progress)
    return findings


def _sites(folder: Path, target: str | None) -> list[Site]:
    """Where the plans are for: this machine, or what it is not, by the names of the folders."""
    asked = None if target is None else parse_target(target)
    here = None if asked is None else _here(asked)
    if here is not None:
        return [here]
    found = []
    for path in sorted(engines_folder(folder).glob("*/")):
        with contextlib.suppress(OptionInvalid):
            named = target_from_folder(path.name)
            if asked is None or asked.flavour == named.flavour:
                found.append(_site(named))
    if asked is not None and not found:
        site_of(asked)  # raises why not
    return found


def _here(asked: Target) -> Site | None:
    try:
        return site_of(asked)
    except BackendUnavailable:
        return None


def _site(named: Target) -> Site:
    """This machine where a folder's target is its own."""
    here = None
    with contextlib.suppress(OptionInvalid):  # a compute capability that this version does not build for
        here = _here(parse_target(str(named)))
    return here if here is not None and here.target.folder == named.folder else Site(named, named.capabilities)


def _set_findings(asked: Asked, on_progress: OnProgress) -> list[Finding]:
    wanted = wanted_plans(asked, _parts_there, cut=False)
    infos = {item.job.plan: item.found for item in wanted if item.found is not None and item.kind == "kept"}
    if len(infos) == len(wanted) and asked.site.runs_here:
        _judge(asked, wanted, infos, on_progress)
    command = _command(asked, wanted)
    return [_finding(asked, item, infos.get(item.job.plan), command) for item in wanted]


def _parts_there(asked: Asked, graph: Graph, count: int | None) -> tuple[int, None]:
    """The parts of a chain of which nothing is valid; of several the shortest, of none 1."""
    counts = found_counts(asked.plan(asked.sets[0], graph).parent, graph.name)
    return count or min(counts, default=1), None


def _judge(asked: Asked, wanted: list[Wanted], infos: dict[str, PlanInfo], on_progress: OnProgress) -> None:
    """Compare what was not compared yet."""
    progress = Progress(on_progress)
    for item in wanted:
        progress.add(item.job.plan, item.job.identity, item.reason, None)
        progress.kept(item.job.plan, item.kind)
    Gate(asked, infos, progress).judge([item.job for item in wanted])


def _finding(asked: Asked, item: Wanted, info: PlanInfo | None, command: str) -> Finding:
    if info is None:
        state, reason = _state(item), item.reason
    else:
        state, reason = "valid", info.verdict.text
        if info.verdict.status == "rejected":
            state = "rejected"
    return Finding(
        target=asked.site.target.folder, set=item.plan.parent.name, plan=item.job.identity.name, path=item.plan,
        state=state, reason=reason, command="" if state == "valid" else command,
    )  # fmt: skip


def _state(item: Wanted) -> State:
    if item.rejected:
        return "rejected"
    if isinstance(item.error, PlanMissing):
        return "missing"
    return "stale" if item.error is None or isinstance(item.error, PlanMismatch) else "damaged"


def _command(asked: Asked, wanted: list[Wanted]) -> str:
    """What a user types to build a set again as it was built."""
    profiles, denoiser = asked.sets[0], denoiser_of(asked.bundle, asked.graphs)
    infos = [item.found for item in wanted] + [item.before for item in wanted]
    options = next((info.options for info in infos if info is not None), DEFAULTS)
    parts = max((item.job.identity.part[1] for item in wanted if item.job.graph == denoiser), default=1)
    return build_command(
        asked.folder, str(asked.site.target), " ".join(profile.text for profile in profiles), asked.precision,
        shared=len(profiles) > 1, options=options, parts=parts if parts > 1 else None,
        without=asked.without,
    )  # fmt: skip
