"""Plans as facts and tables, read from plan.json; the plan itself is never deserialized here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from engine.bundle import load_bundle
from engine.errors import PlanError, PlanMissing, ZturboError
from engine.plan import Options, build_remedy, read_info, verified_plan
from engine.profiles import read_set_name
from engine.target import target_from_folder
from engine.verdict import Verdict
from zturbo.console import bytes_text, print_json, print_table

if TYPE_CHECKING:
    from engine.audit import Finding

ENDINGS = (".plan", ".plan.json", ".plan.rejected", ".plan.rejected.json")
"""How the names of plans end, and of what tells of them."""


def found_plans(folder: Path) -> list[Path]:
    """Every plan below a folder of which there is the plan, or its plan.json."""
    paths = [*folder.rglob("*.plan"), *folder.rglob("*.plan.json")] if folder.is_dir() else []
    return sorted({path.with_name(path.name.removesuffix(".json")) for path in paths})


def _remedy(plan: Path) -> str:
    """The command that builds the set in whose folder a plan is, where the bundle is around it."""
    try:
        bundle_folder = plan.parents[3]
        profiles, precision = read_set_name(plan.parent.name, load_bundle(bundle_folder))
        target = str(target_from_folder(plan.parent.parent.name))
    except (IndexError, ZturboError):
        return "Build it again with `zturbo build` and the bundle's folder."
    texts = " ".join(profile.text for profile in profiles)
    return build_remedy(bundle_folder, target, texts, precision, shared=len(profiles) > 1)


def plan_facts(plan: Path, *, verify: bool, strict: bool = False) -> dict[str, Any]:
    """plan.json as JSON types, with the plan's path.

    verify: compare the bytes too. A plan that cannot be used is {"path", "problem"}; strict: its PlanError is raised.
    """
    remedy = _remedy(plan)
    try:
        info = read_info(plan, remedy)
        if not plan.is_file():
            allowed = "a plan and its plan.json"
            raise PlanMissing(str(plan), actual="no plan beside its plan.json", allowed=allowed, remedy=remedy)
        if verify:
            verified_plan(plan, info, remedy)
    except PlanError as error:
        if strict:
            raise
        return {"path": str(plan), "problem": f"{type(error).__name__}: {error}"}
    return {"path": str(plan), "bytes_verified": verify, "name": info.identity.name, **msgspec.to_builtins(info)}


def print_plan(facts: dict[str, Any]) -> None:
    """One plan in full."""
    identity, machine, verdict = facts["identity"], facts["machine"], facts["verdict"]
    rows = {
        "graph": f"{facts['name']}, {identity['precision']}",
        "profiles": ", ".join(identity["profiles"]),
        "TensorRT": f"{identity['flavour']} {identity['version']}, {facts['mode']}",
        "options": msgspec.convert(facts["options"], Options).text,
        "runs on": "compute capability " + ", ".join(identity["capabilities"]),
        "built on": ", ".join(machine.values()) if machine else "any machine: no GPU was needed",
        "built in": f"{facts['seconds']:.1f} s, {facts['warnings']} warnings",
        "size": bytes_text(facts["plan"]["size_bytes"]),
        "sha256": facts["plan"]["sha256"] + (" (compared)" if facts["bytes_verified"] else " (not compared)"),
        "bundle": identity["bundle_sha256"],
        **build_facts(facts["facts"]),
        "verdict": msgspec.convert(verdict, Verdict).text,
        **({"compared on": ", ".join(verdict["machine"].values())} if verdict["machine"] else {}),
    }
    print_table(f"plan {facts['path']}", ("what", "is"), list(rows.items()))
    for profile, shapes in zip(identity["profiles"], identity["shapes"], strict=True):
        lines = [(name, *("×".join(map(str, shape)) for shape in ranges)) for name, ranges in shapes.items()]
        print_table(f"shapes of {profile}", ("input", "smallest", "tuned for", "largest"), lines)
    print_comparisons(verdict["comparisons"])


def build_facts(found: dict[str, Any]) -> dict[str, str]:
    """What the build showed of a plan, in words; what TensorRT did not tell is left out."""
    types = ", ".join(f"{count} in {name}" for name, count in sorted(found["types"].items()))
    rows = {
        "layers": None if found["layers"] is None else f"{found['layers']}{f' ({types})' if types else ''}",
        "fused attentions": None if found["fused_attentions"] is None else str(found["fused_attentions"]),
        "scratch": None if found["scratch_bytes"] is None else bytes_text(found["scratch_bytes"]),
        "host memory to build": None if found["peak_host_bytes"] is None else bytes_text(found["peak_host_bytes"]),
    }
    return {name: text for name, text in rows.items() if text is not None}


def print_comparisons(comparisons: Sequence[dict[str, Any]]) -> None:
    """How far each output was from the reference; nothing where none was compared."""
    if comparisons:
        rows = [
            (one["case"], one["graph"], one["output"], _error(one), f"{one['allowed']:.2e}", str(one["not_finite"]))
            for one in comparisons
        ]
        columns = ("case", "graph", "output", "error", "allowed", "NaN or infinite")
        print_table("beside the reference", columns, rows, right=(3, 4, 5))


def _error(comparison: dict[str, Any]) -> str:
    return "not finite" if comparison["error"] < 0 else f"{comparison['error']:.2e}"


def print_plans(plans: list[Path], *, verify: bool) -> None:
    """One line per plan; nothing where there is none."""
    if plans:
        columns = ("plan", "graph", "profiles", "TensorRT", "runs on", "size", "verdict", "problem")
        print_table("plans", columns, [_row(plan_facts(plan, verify=verify)) for plan in plans], right=(5,))


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    if "problem" in facts:
        return (facts["path"], "", "", "", "", "", "", facts["problem"])
    identity, size = facts["identity"], bytes_text(facts["plan"]["size_bytes"])
    made_for = f"{identity['flavour']} {identity['version']}"
    return (
        facts["path"], facts["name"], ", ".join(identity["profiles"]), made_for, ", ".join(identity["capabilities"]),
        size, facts["verdict"]["status"], "",
    )  # fmt: skip


def print_findings(folder: Path, findings: Sequence[Finding], commands: Sequence[str], *, as_json: bool) -> None:
    """What a check of a folder of plans found, and the commands that mend it."""
    if as_json:
        plans = [
            {
                "target": one.target, "set": one.set, "plan": one.plan, "path": str(one.path), "state": one.state,
                "reason": one.reason, "command": one.command,
            }
            for one in findings
        ]  # fmt: skip
        print_json({"folder": str(folder), "sound": not commands, "plans": plans, "commands": list(commands)})
        return
    rows = [(one.target, one.set, one.plan, one.state, one.reason) for one in findings]
    print_table(f"{folder}", ("target", "set", "plan", "state", "why"), rows)
    for command in commands:
        typer.echo(f"to mend it: {command}")
