"""Plans and plan.jsons that are not what they must be, made at random from good ones. Knows not who is to refuse them.

What holds no promise (seconds, warnings, machine, options, facts, the words of a verdict) is information: to change it
and compute the hash again is no mutant.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.plan import PlanInfo, info_path, seal
from engine.verdict import Comparison, Verdict

Files = dict[Path, bytes | None]
"""What a mutant writes; None removes the file."""


@dataclass
class Good:
    """Plans as they must be, and the bytes of all files."""

    plans: list[Path]
    files: dict[Path, bytes]

    def info(self, plan: Path) -> PlanInfo:
        """What its plan.json says."""
        return msgspec.json.decode(self.files[info_path(plan)], type=PlanInfo)


def edited_and_sealed(good: Good, rng: random.Random) -> Files:
    """A field of the identity, of the file's entry, of the schema or of the verdict, and the hash over it."""
    plan = rng.choice(good.plans)
    info = good.info(plan)
    name = rng.choice(list(EDITS))
    changed = EDITS[name](info, rng)
    assert changed != info, name
    return {info_path(plan): seal(changed)}


def _identity(name: str, value: Callable[[Any, random.Random], Any]) -> Callable[[PlanInfo, random.Random], PlanInfo]:
    def edit(info: PlanInfo, rng: random.Random) -> PlanInfo:
        identity = msgspec.structs.replace(info.identity, **{name: value(getattr(info.identity, name), rng)})
        return msgspec.structs.replace(info, identity=identity)

    return edit


def _digest(old: str, rng: random.Random) -> str:
    """Another, or one that differs in a single digit."""
    at = rng.randrange(len(old))
    near = old[:at] + rng.choice([digit for digit in "0123456789abcdef" if digit != old[at]]) + old[at + 1 :]
    return rng.choice([near, hashlib.sha256(rng.randbytes(4)).hexdigest(), old.upper() + " ", ""])


def _shapes(old: tuple[Any, ...], rng: random.Random) -> tuple[Any, ...]:
    """One size of one input another, or an input more or less."""
    shapes = json.loads(json.dumps(old[0]))
    name = rng.choice(list(shapes))
    kind = rng.randrange(3)
    if kind == 0:
        sizes = rng.choice([sizes for sizes in shapes[name] if sizes])
        sizes[rng.randrange(len(sizes))] += rng.choice([-1, 1, 64])
    elif kind == 1:
        shapes.pop(name)
    else:
        shapes[name + "_too"] = shapes[name]
    changed = {key: tuple(tuple(sizes) for sizes in ranges) for key, ranges in shapes.items()}
    return (changed, *old[1:]) if rng.random() < 0.8 else (changed, old[0])


def _entry(info: PlanInfo, rng: random.Random) -> PlanInfo:
    field = rng.choice(["sha256", "size_bytes"])
    value = _digest(info.plan.sha256, rng) if field == "sha256" else info.plan.size_bytes + rng.choice([-1, 1, 10**6])
    return msgspec.structs.replace(info, plan=msgspec.structs.replace(info.plan, **{field: value}))


def _rejected(info: PlanInfo, rng: random.Random) -> PlanInfo:
    missed = Comparison(case="loop", graph="solver", output="latents", error=1.0, allowed=rng.random(), not_finite=0)
    verdict = Verdict(status="rejected", reason="too far off", comparisons=(missed,) * rng.randrange(2))
    return msgspec.structs.replace(info, verdict=verdict)


def _schema(info: PlanInfo, rng: random.Random) -> PlanInfo:
    return msgspec.structs.replace(info, version_of_schema=info.version_of_schema + rng.choice([-1, 1, 40]))


EDITS: dict[str, Callable[[PlanInfo, random.Random], PlanInfo]] = {
    "version": _identity("version", lambda old, rng: rng.choice(["8.6.0", "10.13.0.36", "10.13.0", f"{old}.0", ""])),
    "capabilities": _identity("capabilities", lambda _, rng: rng.choice([("8.9",), ("8.6", "8.9"), (), ("9.0a",)])),
    "profiles": _identity(
        "profiles", lambda old, rng: rng.choice([("128@2",), (*old, "128@2"), ("dynamic:64-128@1-3",), (), old * 2])
    ),
    "graph": _identity("graph", lambda old, rng: rng.choice([f"{old}2", "../denoiser", "", old.upper()])),
    "part": _identity("part", lambda old, rng: rng.choice([(old[0], old[1] + 1), (old[0] + 1, old[1]), (0, 0)])),
    "precision": _identity("precision", lambda _, rng: rng.choice(["bf16", "fp32"])),
    "bundle": _identity("bundle_sha256", _digest),
    "graph file": _identity("graph_sha256", _digest),
    "recipe": _identity("recipe", lambda old, rng: old + rng.choice([-1, 1, 100])),
    "shapes": _identity("shapes", _shapes),
    "flavour": _identity("flavour", lambda _, rng: rng.choice(["tensorrt_rtx", "Tensorrt", "tensorrt "])),
    "plan's entry": _entry,
    "verdict": _rejected,
    "schema": _schema,
}


def edited(good: Good, rng: random.Random) -> Files:
    """Another value somewhere in plan.json, the hash as it was; or JSON that no struct is."""
    plan = rng.choice(good.plans)
    raw = good.files[info_path(plan)]
    tree = json.loads(raw)
    kind = rng.randrange(4)
    if kind == 0:
        return {info_path(plan): rng.choice(NONSENSE)}
    spot, key = _spot(tree, rng)
    if kind == 1 and isinstance(spot, dict):
        spot[f"{key}_2"] = spot.pop(key)
    elif kind == 2:
        del spot[key]
    else:
        spot[key] = rng.choice([value for value in (None, -1, 3.5, "x", [], {}, True, 10**30) if value != spot[key]])
    changed = json.dumps(tree).encode()
    return edited(good, rng) if _reads_as(changed, good.info(plan)) else {info_path(plan): changed}


def _reads_as(raw: bytes, info: PlanInfo) -> bool:
    """Whether it is but another way to write the same: what has a default may be left out."""
    try:
        return msgspec.json.decode(raw, type=PlanInfo) == info
    except msgspec.DecodeError:
        return False


NONSENSE = (
    b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version_of_schema": 2}', b"[" * 100_000, b'{"a":' * 50_000, b"NaN",
    b'{"version_of_schema": "2"}', b'{"version_of_schema": 1e400}', b"\x00" * 64,
)  # fmt: skip


def _spot(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container somewhere in it, and a key that it has."""
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        if not isinstance(tree[key], (dict, list)) or not tree[key] or rng.random() < 0.2:
            return tree, key
        tree = tree[key]


def bits(good: Good, rng: random.Random) -> Files:
    """One to eight bits of a plan or of a plan.json."""
    path = rng.choice(list(good.files))
    raw = bytearray(good.files[path])
    for at in rng.sample(range(8 * len(raw)), rng.choice([1, 1, 2, 8])):
        raw[at // 8] ^= 1 << at % 8
    return {path: bytes(raw)}


def cut(good: Good, rng: random.Random) -> Files:
    """Bytes less, bytes more, or no file at all."""
    path = rng.choice(list(good.files))
    raw = good.files[path]
    kind = rng.randrange(4)
    if kind == 0:
        return {path: None}
    if kind == 1:
        return {path: raw + (b"\x00" if path in good.plans else b"}") * rng.randrange(1, 9)}
    return {path: raw[: -1 - rng.randrange(len(raw) - 1)] if kind == 2 else b""}


def swapped(good: Good, rng: random.Random) -> Files:
    """Two plans, two plan.jsons, or both, in each other's places."""
    one, other = rng.sample(good.plans, 2)
    pairs = rng.choice([[(one, other)], [(info_path(one), info_path(other))],
                        [(one, other), (info_path(one), info_path(other))]])  # fmt: skip
    return {target: good.files[source] for a, b in pairs for target, source in ((a, b), (b, a))}


KINDS = {"edited and sealed": edited_and_sealed, "edited": edited, "bits": bits, "cut": cut, "swapped": swapped}


def plans_of(files: Files) -> set[Path]:
    """The plans that a mutant touches, be it by their plan.json."""
    return {path.with_name(path.name.removesuffix(".json")) for path in files}
