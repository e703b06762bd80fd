"""In how many parts a graph is built. Knows neither plans nor processes; engine/cut.py cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.binding import Graph, PlanPrecision
from engine.bundle import Bundle, graph_files
from engine.dialect import Dialect
from engine.errors import ExtraMissing, OptionInvalid
from engine.estimate import GIB, UNEVEN, Rates, files_bytes, host_bytes, rates

MIN_NODES = 150
"""A part of fewer nodes gains little: it starts in a process of its own and takes about 4 GB. SD 1.5's UNet (1553 nodes
that compute) at 8.6.0, 16 cores: 910 s whole, 459 s in 7 parts with 18 builds side by side, and as fast when run."""
MIN_HOISTED = 30
"""The same of a prologue, whose nodes take 8.6.0 much longer, for so many of them are outputs: about 3 s a node (SD
1.5's 277 s, the 140 projections of SDXL 586 s in one part) where a denoiser's take 1.2 s, so many side by side."""


@dataclass(frozen=True, slots=True)
class Size:
    """What decides: nodes, and blocks between which a graph may be cut."""

    nodes: int
    blocks: int


def auto_parts(
    kind: Rates, weights: int, size: Size | None, cores: int, memory_bytes: int | None, least: int = MIN_NODES
) -> int:
    """The parts for a graph of so many bytes of weights.

    Where builds take their time by the node, parts of `least` nodes or more, no more than cores: they build side by
    side. Everywhere at least so many that one fits into memory_bytes of host memory. size: None where it was not
    looked at, because neither asks for a cut.
    """
    count = 1
    if kind.seconds_per_node is not None and size is not None:
        count = max(min(size.nodes // least, cores), 1)
    if memory_bytes is not None:
        count = max(count, memory_parts(kind, weights, memory_bytes))
    return count if size is None else min(count, size.blocks)


def memory_parts(kind: Rates, weights: int, memory_bytes: int) -> int:
    """The least number of parts of which the heaviest fits; 1 where none ever does: preflight says so then."""
    if host_bytes(kind, weights) <= memory_bytes or memory_bytes < kind.host_bytes + GIB // 4:
        return 1
    return math.ceil(UNEVEN * kind.host_per_weight * weights / (memory_bytes - kind.host_bytes))


def count_parts(
    dialect: Dialect,
    precision: PlanPrecision,
    folder: Path,
    bundle: Bundle,
    graph: Graph,
    asked: int | None,
    cores: int,
    memory_bytes: int | None,
) -> tuple[int, int | None]:
    """In how many parts a graph is built, and the nodes of each where they were counted.

    asked: None for auto. A graph is looked into only where its nodes decide or it must be cut, for that needs onnx.
    Raises OptionInvalid or ExtraMissing.
    """
    kind, weights = rates(dialect, precision), graph_bytes(bundle, graph)
    auto = asked is None
    cut = (asked or 1) > 1 or (auto and memory_bytes is not None and memory_parts(kind, weights, memory_bytes) > 1)
    size = size_of(folder, graph, dialect) if cut or kind.seconds_per_node is not None else None
    if asked is not None:
        _check(asked, graph, size)
    least = MIN_HOISTED if graph.hoisted_from else MIN_NODES
    parts = auto_parts(kind, weights, size, cores, memory_bytes, least) if auto else asked or 1
    return parts, None if size is None else size.nodes // parts


def denoiser_of(bundle: Bundle, graphs: tuple[Graph, ...]) -> Graph | None:
    """The largest graph of the loop."""
    loop = [graph for graph in graphs if graph.stage == "loop"]
    return max(loop, key=lambda graph: graph_bytes(bundle, graph), default=None)


def graph_bytes(bundle: Bundle, graph: Graph) -> int:
    """The bytes of a graph's files."""
    return files_bytes(bundle.files[name] for name in graph_files(bundle, graph))


def size_of(folder: Path, graph: Graph, dialect: Dialect) -> Size | None:
    """A graph's nodes and blocks; None for a file that does not parse: its build says what is wrong with it.

    Raises ExtraMissing where onnx is not installed.
    """
    try:
        from engine.cut import outline
        from engine.rewrite import read_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("onnx", "google"):
            raise
        raise ExtraMissing(
            f"graph {graph.name!r}", actual=f"onnx cannot be imported ({error})", allowed="onnx, which cuts graphs",
            remedy=f"Run `pip install 'zturbo[{dialect.flavour.extra}]'`.",
        ) from error  # fmt: skip
    path = folder / graph.file
    try:
        found = outline(read_model(path.read_bytes(), path.parent))
    except (OSError, ValueError):
        return None
    return Size(found.nodes, found.blocks)


def _check(parts: int, graph: Graph, size: Size | None) -> None:
    """Raise OptionInvalid where a graph has fewer blocks than parts are asked for."""
    if size is not None and parts > size.blocks:
        raise OptionInvalid(
            "parts", actual=str(parts), allowed=f"1 to {size.blocks}: graph {graph.name!r} has {size.blocks} blocks",
            remedy="Ask for fewer parts, or for `auto`.",
        )  # fmt: skip
