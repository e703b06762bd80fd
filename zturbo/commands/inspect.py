"""`zturbo inspect`: what is in a bundle or behind a plan, from their JSON alone; needs no GPU and no TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine.bundle import FILE, load_bundle, verified_path
from engine.plan import engines_folder
from zturbo.console import print_json
from zturbo.show_bundle import print_bundle
from zturbo.show_plan import ENDINGS, found_plans, plan_facts, print_plan, print_plans


def run(
    path: Annotated[
        Path, typer.Argument(help="A bundle's folder, a folder of plans, a plan, its plan.json, or a report.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file's hash, not only its size.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a bundle (graphs, bindings, schedulers, files, plans) or a plan."""
    if path.name.endswith(ENDINGS):
        show_plan(path.with_name(path.name.removesuffix(".json")), verify=verify, as_json=as_json)
    elif path.name == FILE or (path / FILE).exists() or not found_plans(path):
        show_bundle(path.parent if path.name == FILE else path, verify=verify, as_json=as_json)
    else:
        show_plans(path, verify=verify, as_json=as_json)


def show_bundle(folder: Path, *, verify: bool, as_json: bool) -> None:
    """Print a bundle and its plans. Raises BundleError where the bundle cannot be used."""
    bundle = load_bundle(folder)
    if verify:
        for name in bundle.files:
            verified_path(folder, bundle, name)
    plans = found_plans(engines_folder(folder))
    if as_json:
        facts = [plan_facts(plan, verify=verify) for plan in plans]
        head = {"kind": "bundle", "path": str(folder), "verified": verify}
        print_json({**head, **msgspec.to_builtins(bundle), "plans": facts})
        return
    print_bundle(folder, bundle, verify=verify)
    print_plans(plans, verify=verify)


def show_plan(plan: Path, *, verify: bool, as_json: bool) -> None:
    """Print one plan. Raises PlanError where it is missing or not what build wrote."""
    facts = plan_facts(plan, verify=verify, strict=True)
    if as_json:
        print_json({"kind": "plan", **facts})
    else:
        print_plan(facts)


def show_plans(folder: Path, *, verify: bool, as_json: bool) -> None:
    """Print every plan below a folder."""
    plans = found_plans(folder)
    if as_json:
        print_json({"kind": "plans", "plans": [plan_facts(plan, verify=verify) for plan in plans]})
    else:
        print_plans(plans, verify=verify)
