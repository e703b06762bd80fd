"""Which of a bundle's plans can run here: found by folder, judged by plan.json, not yet read.

Each target has a folder of its own, so plans for other versions and GPUs may lie beside those for this one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.binding import Dims, Precision
from engine.bundle import Bundle
from engine.dialect import Dialect
from engine.errors import OptionInvalid, PlanError, ProfileInvalid
from engine.machine import Machine
from engine.plan import (
    PlanInfo,
    build_remedy,
    check_identity,
    engines_folder,
    identity_of,
    plan_path,
    read_info,
    soft_differences,
    verified_plan,
)
from engine.profiles import Profile, profile_from_slug
from engine.target import Target, target_from_folder


@dataclass(frozen=True, slots=True)
class PlanSet:
    """The plans of one profile, one for every graph: {graph: (path, info)}. remedy: how to build them again."""

    target: Target
    profile: Profile
    plans: dict[str, tuple[Path, PlanInfo]]
    remedy: str

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Each graph's verified bytes in turn. Raises PlanMissing or PlanDamaged."""
        for graph, (path, info) in self.plans.items():
            yield graph, verified_plan(path, info, self.remedy)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What was found.

    sets: that can run here. problems: why others cannot that are for this version and GPU. others: folders of plans for
    another version or GPU.
    """

    precision: Precision
    sets: tuple[PlanSet, ...]
    problems: tuple[PlanError, ...]
    others: tuple[str, ...]

    def covering(self, dims: Dims) -> PlanSet | None:
        """The set tuned closest to these dims, or None."""
        fitting = [plans for plans in self.sets if plans.profile.covers(dims)]
        return min(fitting, key=lambda plans: plans.profile.size, default=None)

    def nearest(self, height: int, width: int) -> PlanSet:
        """The set for this size in pixels that is tuned closest to it; where none covers it, the nearest one's."""

        def distance(plans: PlanSet) -> tuple[int, int]:
            ranges = ((plans.profile.symbols["height"], height), (plans.profile.symbols["width"], width))
            return sum(max(around.min - px, px - around.max, 0) for around, px in ranges), plans.profile.size

        return min(self.sets, key=distance)

    def max_rows(self, height: int, width: int) -> int:
        """The most rows that a set takes at this size in pixels; those of any set where none covers it."""
        size = {"height": height, "width": width}
        fitting = [plans for plans in self.sets if plans.profile.covers(size)] or self.sets
        return max(plans.profile.symbols["rows"].max for plans in fitting)

    def soft_differences(self, here: Machine) -> list[str]:
        """What differs between the machines that built and this one, each once."""
        infos = [info for plans in self.sets for _, info in plans.plans.values()]
        return sorted({line for info in infos for line in soft_differences(info, here)})


def find_plans(folder: Path, bundle: Bundle, precision: Precision, dialect: Dialect, here: Machine) -> Catalog:
    """Judge the plans of every target of a flavour; of two sets of one profile the first counts."""
    sets: dict[str, PlanSet] = {}
    problems: list[PlanError] = []
    others: dict[str, None] = {}
    for target, profile in _profiles(folder, bundle, dialect.flavour.name):
        if not target.fits(dialect.version, here.compute_capability):
            others[target.folder] = None
            continue
        try:
            plans = _plan_set(folder, bundle, precision, dialect.version, here, target, profile)
        except PlanError as error:
            problems.append(error)
        else:
            sets.setdefault(profile.text, plans)
    return Catalog(precision, tuple(sets.values()), tuple(problems), tuple(others))


def _plan_set(
    folder: Path, bundle: Bundle, precision: Precision, version: str, here: Machine, target: Target, profile: Profile
) -> PlanSet:
    """The plans of one profile. Raises PlanError where one may not run here."""
    remedy = build_remedy(folder, str(target), profile.text)
    plans: dict[str, tuple[Path, PlanInfo]] = {}
    for graph in bundle.graphs(precision):
        capabilities = (here.compute_capability,)
        expected = identity_of(bundle, graph, precision, profile, target.flavour, version, capabilities)
        path = plan_path(folder, target.folder, profile, graph.name)
        info = read_info(path, remedy)
        check_identity(path, info.identity, expected, remedy)
        plans[graph.name] = (path, info)
    return PlanSet(target, profile, plans, remedy)


def _profiles(folder: Path, bundle: Bundle, flavour: str) -> Iterator[tuple[Target, Profile]]:
    """The targets and profiles that a bundle has folders for; other folders are none of ours."""
    for path in sorted(engines_folder(folder).glob("*/*/")):
        with contextlib.suppress(OptionInvalid, ProfileInvalid):
            target, profile = target_from_folder(path.parent.name), profile_from_slug(path.name, bundle)
            if target.flavour == flavour:
                yield target, profile
