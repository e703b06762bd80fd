"""Which of a bundle's plans can run here: found by folder, judged by plan.json, not yet read.

Each target has a folder of its own, so plans for other versions and GPUs may lie beside those for this one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.binding import Dims, Graph, PlanPrecision, variant_of
from engine.bundle import Bundle
from engine.chain import misfit
from engine.dialect import Dialect
from engine.errors import OptionInvalid, PlanError, PlanInvalid, PlanMismatch, PlanMissing
from engine.machine import Machine
from engine.parts import denoiser_of
from engine.plan import (
    DEFAULTS,
    Part,
    PlanInfo,
    build_remedy,
    check_identity,
    engines_folder,
    found_counts,
    identity_of,
    info_path,
    plan_path,
    read_info,
    soft_differences,
    verified_plan,
)
from engine.profiles import Profile, found_sets, set_name
from engine.publish import rejected_info_path, rejected_path
from engine.target import Target, target_from_folder

Plans = tuple[tuple[Path, PlanInfo], ...]


@dataclass(frozen=True, slots=True)
class PlanSet:
    """The plans of one folder, some for every graph that a picture needs. remedy: how to build them again.

    profiles: by the index of the optimization profile in each plan. plans: {graph: (path, info) of each part in order}.
    absent: why a graph has none that a picture can be painted without. apart: the names of all such graphs.
    """

    target: Target
    profiles: tuple[Profile, ...]
    precision: PlanPrecision
    plans: dict[str, Plans]
    remedy: str
    absent: dict[str, PlanError] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Its folder's."""
        return set_name(self.profiles, self.precision)

    @property
    def infos(self) -> list[PlanInfo]:
        """Every plan.json."""
        return [info for parts in self.plans.values() for _, info in parts]

    @property
    def scratch_bytes(self) -> int:
        """What its largest plan needs beside inputs and outputs, as far as the builds recorded it; without those of
        `apart`, which a text alone never asks for.
        """
        needed = [info for parts in self._of(None).values() for _, info in parts]
        return max((info.facts.scratch_bytes or 0 for info in needed), default=0)

    def read(self, graph: str | None = None) -> Iterator[tuple[str, Part, bytes]]:
        """Each plan's verified bytes in turn, a graph's parts in order. Raises PlanMissing or PlanDamaged.

        graph: the one of `apart` to read, and raise the error of where it is absent; None for all but those.
        """
        if graph in self.absent:
            why = self.absent[graph]  # raised anew: an error that is kept would keep the frames of whoever met it
            raise type(why)(why.subject, actual=why.actual, allowed=why.allowed, remedy=why.remedy)
        for name, parts in self._of(graph).items():
            for index, (path, info) in enumerate(parts, 1):
                yield name, (index, len(parts)), verified_plan(path, info, self.remedy)

    def _of(self, graph: str | None) -> dict[str, Plans]:
        wanted = self.plans.keys() - self.apart if graph is None else {graph}
        return {name: parts for name, parts in self.plans.items() if name in wanted}


@dataclass(frozen=True, slots=True)
class Catalog:
    """What was found.

    sets: that can run here. problems: why others cannot that are for this version and GPU. others: folders of plans for
    another version or GPU, or of another precision. usual: the tokens that a profile need not name.
    """

    precision: PlanPrecision
    sets: tuple[PlanSet, ...]
    problems: tuple[PlanError, ...]
    others: tuple[str, ...]
    usual: tuple[int, int]

    @property
    def profiles(self) -> list[tuple[Profile, PlanSet, int]]:
        """Every profile there is, the set that has it, and its index in the plans of that."""
        return [(profile, plans, index) for plans in self.sets for index, profile in enumerate(plans.profiles)]

    @property
    def scratch_bytes(self) -> int:
        """What the largest plan of all sets needs, as far as the builds recorded it."""
        return max((plans.scratch_bytes for plans in self.sets), default=0)

    def covering(self, dims: Dims, graph: str = "") -> tuple[PlanSet, int] | None:
        """The set and the index of the profile tuned closest to these dims, or None. Of a graph that a set may lack, in
        a set that has it where there is one.
        """
        fitting = [one for one in self.profiles if one[0].covers(dims)]
        closest = min(fitting, key=lambda one: (graph in one[1].absent, one[0].size), default=None)
        return None if closest is None else closest[1:]

    def nearest(self, height: int, width: int) -> PlanSet:
        """The set for this size in pixels that is tuned closest to it; where none covers it, the nearest one's."""

        def distance(one: tuple[Profile, PlanSet, int]) -> tuple[int, tuple[int, int]]:
            ranges = ((one[0].symbols["height"], height), (one[0].symbols["width"], width))
            return sum(max(around.min - px, px - around.max, 0) for around, px in ranges), one[0].size

        return min(self.profiles, key=distance)[1]

    def row_counts(self, height: int, width: int, tokens: int) -> list[int]:
        """The numbers of rows that profiles take at this size in pixels and this many tokens, ascending; of any, where
        none covers them.
        """
        size, every = {"height": height, "width": width, "tokens": tokens}, [one[0] for one in self.profiles]
        ranges = [one.symbols["rows"] for one in [one for one in every if one.covers(size)] or every]
        return sorted({rows for around in ranges for rows in range(around.min, around.max + 1)})

    def soft_differences(self, here: Machine) -> list[str]:
        """What is worth a warning: where this machine differs from those that built, and what was never compared."""
        infos = [(plans.name, info) for plans in self.sets for info in plans.infos]
        lines = sorted({line for _, info in infos for line in soft_differences(info, here)})
        unverified = sorted({name for name, info in infos if info.verdict.status == "unverified"})
        if unverified:
            lines.append(f"the parity gate has not compared all plans of {', '.join(unverified)}")
        passed = [info.verdict for _, info in infos if info.verdict.status == "passed"]
        profiles = {line for verdict in passed for line in verdict.ungated if line.startswith("profile ")}
        lines += [f"the parity gate could not compare {line}" for line in sorted(profiles)]
        return lines


def find_plans(folder: Path, bundle: Bundle, precision: PlanPrecision, dialect: Dialect, here: Machine) -> Catalog:
    """Judge the plans of every target of a flavour; of two sets of the same profiles the first counts."""
    search = _Search(folder, bundle, precision, dialect.version, (here.compute_capability,))
    sets: dict[str, PlanSet] = {}
    problems: list[PlanError] = []
    others: dict[str, None] = {}
    for target, profiles, found in search.folders(dialect.flavour.name):
        if not target.fits(dialect.version, here.compute_capability):
            others[target.folder] = None
        elif found != precision:
            others[f"{target.folder} in {found}"] = None
        else:
            try:
                plans = search.plan_set(target, profiles)
            except PlanError as error:
                problems.append(error)
            else:
                sets.setdefault(plans.name, plans)
    return Catalog(precision, tuple(sets.values()), tuple(problems), tuple(others), bundle.tokenizer.usual)


@dataclass(frozen=True, slots=True)
class _Search:
    """What plans are wanted for: a bundle, a precision, and this machine's TensorRT and GPU."""

    folder: Path
    bundle: Bundle
    precision: PlanPrecision
    version: str
    capabilities: tuple[str, ...]

    def folders(self, flavour: str) -> Iterator[tuple[Target, tuple[Profile, ...], PlanPrecision]]:
        """The sets that a bundle has folders for; other folders are none of ours."""
        for path in sorted(engines_folder(self.folder).glob("*/")):
            with contextlib.suppress(OptionInvalid):
                target = target_from_folder(path.name)
                if target.flavour == flavour:
                    for profiles, precision in found_sets(path, self.bundle):
                        yield target, profiles, precision

    def plan_set(self, target: Target, profiles: tuple[Profile, ...]) -> PlanSet:
        """The plans of one set. Raises PlanError where a graph that a picture needs has none that may run here."""
        graphs = self.bundle.graphs(variant_of(self.precision))
        remedy = self._remedy(target, profiles, graphs)
        plans, absent = dict[str, Plans](), dict[str, PlanError]()
        for graph in graphs:
            try:
                plans[graph.name] = self._chain(target, profiles, graph, remedy)
            except PlanError as error:  # noqa: PERF203
                if not graph.optional:
                    raise
                absent[graph.name] = error
        apart = frozenset(graph.name for graph in graphs if graph.optional)
        return PlanSet(target, profiles, self.precision, plans, remedy, absent, apart)

    def _remedy(self, target: Target, profiles: tuple[Profile, ...], graphs: Sequence[Graph]) -> str:
        """The command that builds a set as it was built, as far as the plans that are there tell."""
        texts, options, counts = " ".join(profile.text for profile in profiles), DEFAULTS, list[int]()
        for graph in graphs:
            whole = plan_path(self.folder, target.folder, profiles, self.precision, graph.name)
            if graph == denoiser_of(self.bundle, tuple(graphs)):
                counts = found_counts(whole.parent, graph.name)
            with contextlib.suppress(PlanError):
                options = read_info(whole, "").options
        parts = counts[0] if counts and counts[0] > 1 else None
        return build_remedy(
            self.folder, str(target), texts, self.precision, shared=len(profiles) > 1, options=options, parts=parts
        )

    def _chain(self, target: Target, profiles: Sequence[Profile], graph: Graph, remedy: str) -> Plans:
        """A graph's plans: of several chains that may run here one that passed, then the one with fewest parts.

        Where there is none: why the shortest cannot that is there in all its parts, else what is missing or was
        rejected.
        """
        whole = plan_path(self.folder, target.folder, profiles, self.precision, graph.name)
        reasons, chains = list[PlanError](), list[Plans]()
        for count in found_counts(whole.parent, graph.name):
            try:
                chains.append(self._parts(target, profiles, graph, count, remedy))
            except PlanError as error:  # noqa: PERF203  # another chain may do
                reasons.append(error)
        if chains:
            return max(chains, key=lambda chain: all(info.verdict.status == "passed" for _, info in chain))
        named = [error for error in reasons if not isinstance(error, PlanMissing)] or reasons
        if named:
            raise named[0]
        raise _none(whole, graph.name, remedy)

    def _parts(self, target: Target, profiles: Sequence[Profile], graph: Graph, count: int, remedy: str) -> Plans:
        """A chain of this many parts. Raises PlanError where it may not run here."""
        found = tuple(self._part(target, profiles, graph, (k, count), remedy) for k in range(1, count + 1))
        if reason := misfit(graph, [info.wires for _, info in found]):
            actual, allowed = f"plans that do not fit each other: {reason}", "parts of one cut"
            raise PlanMismatch(str(found[0][0]), actual=actual, allowed=allowed, remedy=remedy)
        return found

    def _part(
        self, target: Target, profiles: Sequence[Profile], graph: Graph, part: Part, remedy: str
    ) -> tuple[Path, PlanInfo]:
        path = plan_path(self.folder, target.folder, profiles, self.precision, graph.name, part)
        info = read_info(path, remedy)
        if not path.is_file():
            actual = "no plan beside its plan.json"
            raise PlanMissing(str(path), actual=actual, allowed="a plan and its plan.json", remedy=remedy)
        expected = identity_of(
            self.bundle, graph, self.precision, profiles, target.flavour, self.version, self.capabilities, part
        )
        check_identity(path, info.identity, expected, remedy)
        if info.verdict.status == "rejected":
            actual = f"a plan that the parity gate rejected ({info.verdict.reason})"
            raise PlanInvalid(str(info_path(path)), actual=actual, allowed="a plan that it did not", remedy=remedy)
        return path, info


def _none(whole: Path, graph: str, remedy: str) -> PlanMissing:
    """That there is no plan of a graph: none was built, or the parity gate rejected what was."""
    for name in sorted(path.name for path in whole.parent.glob(f"{graph}.*rejected.json")):
        plan = whole.with_name(name.removesuffix(".rejected.json"))
        with contextlib.suppress(PlanError):
            verdict = read_info(rejected_path(plan), remedy).verdict
            return PlanMissing(
                str(whole), actual=f"no plan but one that the parity gate rejected ({verdict.reason})",
                allowed="a plan that it did not",
                remedy=f"The report is {rejected_info_path(plan)}. Try another --precision or --parts. {remedy}",
            )  # fmt: skip
    return PlanMissing(str(whole), actual="no plan", allowed="a plan and its plan.json", remedy=remedy)
