"""Plans as facts and tables, read from plan.json; the plan itself is never deserialized here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.errors import PlanError
from engine.plan import read_info, verified_plan
from zturbo.console import bytes_text, print_table

REMEDY = "Build it again with `zturbo build`."


def found_plans(folder: Path) -> list[Path]:
    """Every plan below a folder, whether its plan.json is there or not."""
    return sorted(folder.rglob("*.plan")) if folder.is_dir() else []


def plan_facts(plan: Path, *, verify: bool, strict: bool = False) -> dict[str, Any]:
    """plan.json as JSON types, with the plan's path.

    verify: compare the bytes too. A plan that cannot be used is {"path", "problem"}; strict: its PlanError is raised.
    """
    try:
        info = read_info(plan, REMEDY)
        if verify:
            verified_plan(plan, info, REMEDY)
    except PlanError as error:
        if strict:
            raise
        return {"path": str(plan), "problem": f"{type(error).__name__}: {error}"}
    return {"path": str(plan), "bytes_verified": verify, **msgspec.to_builtins(info)}


def print_plan(facts: dict[str, Any]) -> None:
    """One plan in full."""
    identity, machine = facts["identity"], facts["machine"]
    rows = {
        "graph": f"{identity['graph']}, {identity['precision']}",
        "profile": identity["profile"],
        "TensorRT": f"{identity['flavour']} {identity['version']}, {facts['mode']}",
        "runs on": "compute capability " + ", ".join(identity["capabilities"]),
        "built on": ", ".join(machine.values()) if machine else "a machine without a GPU",
        "built in": f"{facts['seconds']:.1f} s, {facts['warnings']} warnings",
        "size": bytes_text(facts["plan"]["size_bytes"]),
        "sha256": facts["plan"]["sha256"] + (" (compared)" if facts["bytes_verified"] else " (not compared)"),
        "bundle": identity["bundle_sha256"],
        "compared with": facts["verified"] or "not compared yet",
    }
    print_table(f"plan {facts['path']}", ("what", "is"), list(rows.items()))
    shapes = [(name, *("×".join(map(str, shape)) for shape in ranges)) for name, ranges in identity["shapes"].items()]
    print_table("shapes", ("input", "smallest", "tuned for", "largest"), shapes)


def print_plans(plans: list[Path], *, verify: bool) -> None:
    """One line per plan; nothing where there is none."""
    if plans:
        columns = ("plan", "graph", "profile", "TensorRT", "runs on", "size", "problem")
        print_table("plans", columns, [_row(plan_facts(plan, verify=verify)) for plan in plans], right=(5,))


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    if "problem" in facts:
        return (facts["path"], "", "", "", "", "", facts["problem"])
    identity = facts["identity"]
    made_for = f"{identity['flavour']} {identity['version']}"
    size = bytes_text(facts["plan"]["size_bytes"])
    return (
        facts["path"], identity["graph"], identity["profile"], made_for, ", ".join(identity["capabilities"]), size, "",
    )  # fmt: skip
