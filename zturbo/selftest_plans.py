"""The self-test's plans: built, verified, refused where they are damaged, and judged by the parity gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from engine.build import BuildEvent, build_engines
from engine.bundle import load_bundle
from engine.errors import PlanDamaged, PlanError, PlanMismatch
from engine.job import GateJob
from engine.plan import (
    Options,
    PlanInfo,
    check_identity,
    engines_folder,
    identity_of,
    info_path,
    plan_path,
    read_info,
    seal,
    verified_plan,
)
from engine.processes import run_gate
from engine.profiles import parse_profile
from engine.verdict import Verdict
from zturbo.selftest import Report, Wrong

QUICK = Options(level=0)
"""That a TensorRT is right is to be shown, not that it is fast; 8.6.0 builds in a third of the time. Left out by build
where it changes nothing."""


class Plans:
    """The plans of one profile, one set. target: as a user writes it."""

    def __init__(self, folder: Path, target: str, profile: str, report: Report) -> None:
        self._folder, self._target, self._report = folder, target, report
        self._profile = parse_profile(profile, load_bundle(folder))
        self.infos: list[PlanInfo] = []

    def build(self, parts: int) -> str:
        """Build every graph, the denoiser in so many plans; what was built in words. Raises ZturboError."""
        built: list[float] = []

        def tell(event: BuildEvent) -> None:
            if event.kind == "built":
                built.append(event.seconds or 0.0)
            if event.kind != "running":
                self._report.log.append(str(event))

        try:
            self.infos = build_engines(
                self._folder, self._target, [self._profile.text], parts=parts, options=QUICK,
                on_progress=tell,
            )  # fmt: skip
        finally:
            self._note()
        modes = ", ".join(sorted({info.mode for info in self.infos}))
        fused = [info.facts.fused_attentions for info in self.infos if info.facts.fused_attentions is not None]
        told = f", {sum(fused)} fused attentions" if fused else ""
        count = str(len(self.infos)) if len(built) == len(self.infos) else f"{len(built)} of {len(self.infos)}"
        level = self.infos[0].options.text
        return f"{count} plans built in {sum(built):.1f} s at {level}, {modes}{told}"

    def verify(self, capability: str | None) -> str:
        """Each plan is what is asked for here. capability: the GPU's; None without one. Raises PlanError or Wrong."""
        bundle = load_bundle(self._folder)
        graphs = {graph.name: graph for graph in bundle.graphs("fp16")}
        for info in self.infos:
            found = info.identity
            expected = identity_of(
                bundle, graphs[found.graph], "fp16", [self._profile], found.flavour, str(self._report.facts["version"]),
                found.capabilities if capability is None else (capability,), found.part,
            )  # fmt: skip
            read = read_info(self._path(info), "")
            check_identity(self._path(info), read.identity, expected, "")
            verified_plan(self._path(info), read, "")
        self._see_damage_refused(self.infos[0])
        return f"{len(self.infos)} plans verified; a flipped bit and another version are refused"

    def judge(self) -> str:
        """What the gate says of each plan; where the build did not ask it, it is asked now. Raises Wrong."""
        verdicts = {info.identity.graph: info.verdict for info in self.infos}
        if any(verdict.status == "unverified" for verdict in verdicts.values()):
            verdicts = self._gated()
        self._report.facts["verdicts"] = msgspec.to_builtins(verdicts)
        if bad := [f"{name}: {verdict.reason}" for name, verdict in verdicts.items() if verdict.status != "passed"]:
            raise Wrong("; ".join(bad))
        found = {one for verdict in verdicts.values() for one in verdict.comparisons}
        worst = max((one for one in found if one.allowed), key=lambda one: one.error / one.allowed)
        near = f"{worst.output} of {worst.graph}, case {worst.case}: {worst.error:.1e} of {worst.allowed:.1e}"
        return f"{len(found)} comparisons within bounds, the nearest to its own {near}"

    def _gated(self) -> dict[str, Verdict]:
        plans: dict[str, tuple[str, ...]] = {}
        for info in self.infos:
            name = info.identity.graph
            plans[name] = (*plans.get(name, ()), str(self._path(info)))
        reply = run_gate(GateJob(
            folder=str(self._folder), flavour=self.infos[0].identity.flavour, precision="fp16",
            profiles=(self._profile.text,), plans=plans,
        ))  # fmt: skip
        if reply.failure is not None:
            raise Wrong(f"the gate could not run: {reply.failure.subject}: {reply.failure.actual}")
        return reply.verdicts

    def _path(self, info: PlanInfo) -> Path:
        """Where a plan lies; there is one target in the folder."""
        identity = info.identity
        name = plan_path(self._folder, "x", [self._profile], "fp16", identity.graph, identity.part).name
        return next(iter(engines_folder(self._folder).glob(f"*/*/{name}")))

    def _note(self) -> None:
        """Every plan.json, and every report on a plan that the gate rejected, as facts."""
        found = sorted(engines_folder(self._folder).glob("*/*/*.json"))
        facts = self._report.facts.setdefault("plans", {})
        facts |= {path.name: msgspec.json.decode(path.read_bytes()) for path in found}

    def _see_damage_refused(self, info: PlanInfo) -> None:
        plan = self._folder / "damaged" / self._path(info).name
        plan.parent.mkdir()
        raw = bytearray(self._path(info).read_bytes())
        raw[len(raw) // 2] ^= 1
        plan.write_bytes(raw)
        other = msgspec.structs.replace(info, identity=msgspec.structs.replace(info.identity, version="0.0"))
        info_path(plan).write_bytes(seal(other))
        read = read_info(plan, "")
        _refused(PlanDamaged, lambda: verified_plan(plan, read, ""))
        _refused(PlanMismatch, lambda: check_identity(plan, read.identity, info.identity, ""))
        shutil.rmtree(plan.parent)


def _refused(kind: type[PlanError], check: Callable[[], object]) -> None:
    try:
        check()
    except kind:
        return
    raise Wrong(f"a plan was taken that is {kind.__name__}")


def parts_text(infos: Sequence[PlanInfo]) -> str:
    """The plans that are parts, in words."""
    return ", ".join(info.identity.name for info in infos if info.identity.part[1] > 1)
