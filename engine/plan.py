"""plan.json: what a plan is, and the only way from a plan's file to bytes that may be deserialized.

A plan is code. It is read once, its sha256 compared, and the same bytes are handed on; what is expected of it is
computed from the bundle, the request and the machine, never read from plan.json. This protects from damage and
staleness, not from someone who rewrites both files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.binding import Graph, Precision
from engine.bundle import Bundle, FileEntry, Struct, body_sha256, graph_files
from engine.errors import PlanDamaged, PlanInvalid, PlanMismatch, PlanMissing
from engine.machine import Machine
from engine.profiles import Profile

VERSION = 1
RECIPE = 1
"""Raised when engine/ changes what it makes of the same graph, so that plans made before are stale."""

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class Identity(Struct, frozen=True):
    """All that must agree, exactly, before a plan is deserialized.

    graph_sha256: over the ONNX file and its external data. shapes: (min, opt, max) of every input.
    capabilities: what the plan was built for; of an expected identity, what it must run on.
    """

    bundle_sha256: str
    graph: str
    graph_sha256: str
    precision: Precision
    profile: str
    shapes: Shapes
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    recipe: int = RECIPE


class PlanInfo(Struct, frozen=True):
    """The whole of plan.json.

    mode: how the precision was asked for (engine/dialect.py). machine: where it was built; None without a GPU.
    warnings: how many TensorRT wrote. seconds: what the build took. verified: by what the plan was run and compared, or
    empty: build compares nothing yet.
    """

    version_of_schema: int
    sha256: str
    identity: Identity
    plan: FileEntry
    mode: str
    machine: Machine | None
    warnings: int
    seconds: float
    verified: str


def plan_path(folder: Path, target_folder: str, profile: Profile, graph: str) -> Path:
    """Where a bundle's plan lies; its plan.json is at `info_path` of that."""
    return engines_folder(folder) / target_folder / profile.slug / f"{graph}.plan"


def engines_folder(folder: Path) -> Path:
    """The folder of a bundle's plans, by target."""
    return folder / "engines"


def info_path(plan: Path) -> Path:
    """The plan.json of a plan."""
    return plan.with_name(plan.name + ".json")


def identity_of(
    bundle: Bundle, graph: Graph, precision: Precision, profile: Profile, flavour: str, version: str,
    capabilities: tuple[str, ...],
) -> Identity:  # fmt: skip
    """The identity that a plan must have, computed from what it is to be used with."""
    return Identity(
        bundle_sha256=bundle.sha256, graph=graph.name, graph_sha256=graph_sha256(bundle, graph), precision=precision,
        profile=profile.text, shapes={binding.name: profile.ranges(binding) for binding in graph.inputs},
        flavour=flavour, version=version, capabilities=capabilities,
    )  # fmt: skip


def graph_sha256(bundle: Bundle, graph: Graph) -> str:
    """The identity of a graph: its file's sha256, or one over all of them where weights lie beside it."""
    files = graph_files(bundle, graph)
    if files == [graph.file]:
        return bundle.files[graph.file].sha256
    listing = "".join(f"{name[len(graph.file) :]} {bundle.files[name].sha256}\n" for name in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def seal(info: PlanInfo) -> bytes:
    """plan.json as bytes, with the hash of its own body."""
    sealed = msgspec.structs.replace(info, sha256=body_sha256(info))
    return msgspec.json.format(msgspec.json.encode(sealed, order="deterministic"), indent=1) + b"\n"


def read_info(plan: Path, remedy: str) -> PlanInfo:
    """Read plan.json strictly. Raises PlanMissing, or PlanInvalid for a body that its own hash does not cover."""
    path = info_path(plan)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PlanMissing(str(plan), actual="no plan", allowed="a plan and its plan.json", remedy=remedy) from error
    try:
        version = msgspec.json.decode(raw, type=_Version).version_of_schema
        if version != VERSION:
            raise PlanInvalid(str(path), actual=f"version {version}", allowed=f"version {VERSION}", remedy=remedy)
        info = msgspec.json.decode(raw, type=PlanInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanInvalid(str(path), actual=str(error), allowed="what build wrote", remedy=remedy) from error
    if info.sha256 != body_sha256(info):
        actual = "a body that does not match its own sha256 (edited by hand?)"
        raise PlanInvalid(str(path), actual=actual, allowed="what build wrote", remedy=remedy)
    return info


class _Version(msgspec.Struct):
    version_of_schema: int


def check_identity(plan: Path, found: Identity, expected: Identity, remedy: str) -> None:
    """Raise PlanMismatch with the first thing that disagrees."""
    for field, words in _CHECKS.items():
        actual, allowed = getattr(found, field), getattr(expected, field)
        agrees = set(allowed) <= set(actual) if field == "capabilities" else actual == allowed
        if not agrees:
            subject = f"{plan}, {words[0]}"
            raise PlanMismatch(subject, actual=words[1](actual), allowed=words[1](allowed), remedy=remedy)


def _short(digest: str) -> str:
    return f"sha256 {digest[:12]}…"


def _joined(values: tuple[str, ...]) -> str:
    return ", ".join(values) or "none"


_CHECKS: dict[str, tuple[str, Callable[..., str]]] = {
    "flavour": ("kind of TensorRT", str),
    "version": ("version of TensorRT it was built with", str),
    "capabilities": ("compute capability it was built for", _joined),
    "recipe": ("recipe of zturbo it was built by", str),
    "graph": ("graph it was built from", str),
    "precision": ("precision", str),
    "profile": ("profile", str),
    "shapes": ("shapes of its profile", str),
    "graph_sha256": ("graph file it was built from", _short),
    "bundle_sha256": ("bundle it was built for", _short),
}
assert set(_CHECKS) == set(Identity.__struct_fields__)


def verified_plan(plan: Path, info: PlanInfo, remedy: str) -> bytes:
    """The plan's bytes, read once and hashed. Raises PlanMissing or PlanDamaged."""
    try:
        raw = plan.read_bytes()
    except OSError as error:
        actual = f"no readable plan beside its plan.json ({error.strerror})"
        raise PlanMissing(str(plan), actual=actual, allowed="a plan and its plan.json", remedy=remedy) from error
    if len(raw) != info.plan.size_bytes:
        allowed = f"{info.plan.size_bytes} bytes"
        raise PlanDamaged(str(plan), actual=f"{len(raw)} bytes", allowed=allowed, remedy=remedy)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != info.plan.sha256:
        raise PlanDamaged(str(plan), actual=_short(digest), allowed=_short(info.plan.sha256), remedy=remedy)
    return raw


def soft_differences(info: PlanInfo, here: Machine) -> list[str]:
    """What of the machine differs without forbidding the plan: `driver: built with 580.1, running with 581.2`."""
    if info.machine is None:
        return []
    pairs = ((name, getattr(info.machine, name), getattr(here, name)) for name in ("gpu", "driver", "cuda"))
    return [f"{name}: built with {built}, running with {runs}" for name, built, runs in pairs if built != runs]


def build_remedy(folder: Path, target: str, profile: str) -> str:
    """What a user is told to type to build the plans of one profile."""
    return f'Run `zturbo build "{folder}" --target {target} --profiles "{profile}"`.'
