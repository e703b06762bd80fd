"""plan.json: what a plan is, and the only way from a plan's file to bytes that may be deserialized.

A plan is code. It is read once, its sha256 compared, and the same bytes are handed on; what is expected of it is
computed from the bundle, the request and the machine, never read from plan.json. This protects from damage and
staleness, not from someone who rewrites both files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from engine.binding import Graph, PlanPrecision
from engine.bundle import Bundle, body_sha256, graph_files
from engine.errors import PlanDamaged, PlanInvalid, PlanMismatch, PlanMissing
from engine.machine import Machine
from engine.profiles import Profile, set_name
from engine.schema import FileEntry, Struct
from engine.verdict import Verdict

VERSION = 2
RECIPE = 2
"""Raised when engine/ changes what it makes of the same graph, so that plans made before are stale."""

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
Part = tuple[int, int]
"""Which part of a graph, from 1, of how many; (1, 1) is the whole."""
WHOLE: Part = (1, 1)


class Identity(Struct, frozen=True):
    """All that must agree, exactly, before a plan is deserialized.

    graph_sha256: over the ONNX file and its external data. profiles: the text of each optimization profile, in their
    order in the plan; shapes: for each, (min, opt, max) of every input of the whole graph.
    capabilities: what the plan was built for; of an expected identity, what it must run on.
    """

    bundle_sha256: str
    graph: str
    graph_sha256: str
    part: Part
    precision: PlanPrecision
    profiles: tuple[str, ...]
    shapes: tuple[Shapes, ...]
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    recipe: int = RECIPE

    @property
    def name(self) -> str:
        """The graph and, of several, the part: `denoiser 2/7`."""
        index, count = self.part
        return self.graph if count == 1 else f"{self.graph} {index}/{count}"


class Options(Struct, frozen=True):
    """What a build was asked for beside the identity; None: TensorRT's own default.

    level: builder optimization level, 0 to 5. workspace_mib: what a layer's tactic may take at most.
    """

    level: int | None = None
    workspace_mib: int | None = None

    @property
    def text(self) -> str:
        """As a person says it: `level 3, workspace 1024 MiB`."""
        level = "" if self.level is None else f"level {self.level}"
        workspace = "" if self.workspace_mib is None else f"workspace {self.workspace_mib} MiB"
        return ", ".join(filter(None, (level, workspace))) or "TensorRT's defaults"


class Facts(Struct, frozen=True):
    """What the build showed of a plan (engine/buildlog.py); None where this TensorRT does not tell.

    layers: in the plan. fused_attentions: layers that are a whole attention. types: {dtype: layers that write it}.
    scratch_bytes: what an execution context needs beside inputs and outputs. peak_host_bytes: of the process that
    built.
    """

    layers: int | None = None
    fused_attentions: int | None = None
    types: dict[str, int] = msgspec.field(default_factory=dict)
    scratch_bytes: int | None = None
    peak_host_bytes: int | None = None


DEFAULTS = Options()


class Wires(Struct, frozen=True):
    """The names of what a plan reads and makes: of a part, also what crosses from part to part."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class PlanInfo(Struct, frozen=True):
    """The whole of plan.json.

    wires: by which engine/chain.py tells whether parts fit. mode: how the precision was asked for (engine/dialect.py).
    machine: where it was built; None without a GPU. warnings: how many TensorRT wrote. seconds: what the build took.
    verdict: what the parity gate found.
    """

    version_of_schema: int
    sha256: str
    identity: Identity
    plan: FileEntry
    wires: Wires
    options: Options
    mode: str
    machine: Machine | None
    warnings: int
    seconds: float
    facts: Facts
    verdict: Verdict


def plan_path(
    folder: Path, target_folder: str, profiles: Sequence[Profile], precision: PlanPrecision, graph: str,
    part: Part = WHOLE,
) -> Path:  # fmt: skip
    """Where a bundle's plan lies; its plan.json is at `info_path` of that."""
    name = graph if part == WHOLE else f"{graph}.{part[0]}of{part[1]}"
    return engines_folder(folder) / target_folder / set_name(profiles, precision) / f"{name}.plan"


def engines_folder(folder: Path) -> Path:
    """The folder of a bundle's plans, by target."""
    return folder / "engines"


def found_counts(folder: Path, graph: str) -> list[int]:
    """In how many parts there are plans of a graph in a set's folder, ascending."""
    names = [path.name.removeprefix(graph) for path in folder.glob("*.plan.json") if path.name.startswith(graph)]
    matches = [re.fullmatch(r"\.(?:[0-9]+of([1-9][0-9]{0,2})\.)?plan\.json", name) for name in names]
    return sorted({int(match[1] or 1) for match in matches if match is not None})


def info_path(plan: Path) -> Path:
    """The plan.json of a plan."""
    return plan.with_name(plan.name + ".json")


def identity_of(
    bundle: Bundle, graph: Graph, precision: PlanPrecision, profiles: Sequence[Profile], flavour: str, version: str,
    capabilities: tuple[str, ...], part: Part = WHOLE,
) -> Identity:  # fmt: skip
    """The identity that a plan must have, computed from what it is to be used with."""
    return Identity(
        bundle_sha256=bundle.sha256, graph=graph.name, graph_sha256=graph_sha256(bundle, graph), part=part,
        precision=precision, profiles=tuple(profile.text for profile in profiles),
        shapes=tuple(profile.shapes(graph) for profile in profiles),
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
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        actual = "no plan" if absent else f"no plan.json that can be read ({error.strerror})"
        raise PlanMissing(str(plan), actual=actual, allowed="a plan and its plan.json", remedy=remedy) from error
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
    "part": ("part of the graph", lambda part: f"{part[0]} of {part[1]}"),
    "precision": ("precision", str),
    "profiles": ("profiles", _joined),
    "shapes": ("shapes of its profiles", str),
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
    lines, judge = [], info.verdict.machine
    if info.machine is not None:
        pairs = ((name, getattr(info.machine, name), getattr(here, name)) for name in ("gpu", "driver", "cuda"))
        lines = [f"{name}: built with {built}, running with {runs}" for name, built, runs in pairs if built != runs]
    if judge is not None and judge.compute_capability != here.compute_capability:
        where = f"compute capability {judge.compute_capability}, running on {here.compute_capability}"
        lines.append(f"parity gate: compared on {where}")
    return lines


def build_command(
    folder: Path, target: str, profiles: str, precision: PlanPrecision = "fp16", *, shared: bool = False,
    options: Options = DEFAULTS, parts: int | None = None, without: Sequence[str] = (),
) -> str:  # fmt: skip
    """What a user types to build the plans of these profiles, their texts separated by spaces, as they were built."""
    words = ["zturbo", "build", str(folder), "--target", target, "--profiles", profiles]
    words += [] if precision == "fp16" else ["--precision", precision]
    words += ["--shared"] if shared else []
    for name, value in (("parts", parts), ("level", options.level), ("workspace", options.workspace_mib)):
        words += [] if value is None else [f"--{name}", str(value)]
    words += [word for name in without for word in ("--without", name)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def build_remedy(
    folder: Path, target: str, profiles: str, precision: PlanPrecision = "fp16", *, shared: bool = False,
    options: Options = DEFAULTS, parts: int | None = None,
) -> str:  # fmt: skip
    """That a user is to type `build_command`."""
    command = build_command(folder, target, profiles, precision, shared=shared, options=options, parts=parts)
    return f"Run `{command}`."
