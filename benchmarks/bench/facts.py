"""What a contender tells of itself: the weights it holds, how its plans were built, the versions of its libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import versions
from engine.binding import Dims, PlanPrecision, Precision
from engine.bundle import Bundle, graph_files
from engine.catalog import find_plans
from engine.cuda import Cuda
from engine.dialect import FLAVOURS, load_dialect
from engine.machine import machine_of
from engine.plan import PlanInfo


def library_versions(backend: str) -> dict[str, str]:
    """Those installed here, and the version that the imported TensorRT itself tells where a flavour of it runs."""
    return {**versions(), **({backend: load_dialect(backend).version} if backend in FLAVOURS else {})}


def variant_bytes(bundle: Bundle, variant: Precision) -> int:
    """The size of the graphs' files that a picture needs, which is their weights'."""
    graphs = [graph for graph in bundle.graphs(variant) if not graph.optional]
    names = {name for graph in graphs for name in graph_files(bundle, graph)}
    return sum(bundle.files[name].size_bytes for name in names)


def plan_facts(folder: Path, bundle: Bundle, name: str, precision: PlanPrecision, dims: Dims) -> dict[str, Any]:
    """Of the plans that a flavour of TensorRT runs at these dims: their bytes, and what building them took; else {}."""
    if name not in FLAVOURS:
        return {}
    dialect = load_dialect(name)
    catalog = find_plans(folder, bundle, precision, dialect, machine_of(Cuda(extra=dialect.flavour.extra)))
    found = catalog.covering(dims)
    return {} if found is None else told(found[0].infos)


def told(infos: list[PlanInfo]) -> dict[str, Any]:
    """weights_bytes, and of the build: plans, seconds one by one, of all together and of the longest.

    attentions: {plan: fused ones} where TensorRT tells them. peak_host_bytes: of the process that took most.
    """
    names = [f"{info.identity.name}" for info in infos]
    attentions = {
        name: info.facts.fused_attentions
        for name, info in zip(names, infos, strict=True) if info.facts.fused_attentions is not None
    }  # fmt: skip
    seconds = [info.seconds for info in infos]
    return {
        "weights_bytes": sum(info.plan.size_bytes for info in infos),
        "build": {
            "plans": len(infos), "seconds": sum(seconds), "longest_s": max(seconds, default=0.0),
            "by_plan": dict(zip(names, seconds, strict=True)), "attentions": attentions,
            "peak_host_bytes": max((info.facts.peak_host_bytes or 0 for info in infos), default=0),
        },
    }  # fmt: skip
