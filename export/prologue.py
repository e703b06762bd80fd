"""A written graph of the loop → its prologue and the rest, as files and as bundle.json says of them.

Does not know what is hoisted (engine/hoist.py), nor checks it: export/check.py runs the two as a chain.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import msgspec
import onnx

from engine.binding import Binding, Graph, Stage
from engine.hoist import Hoisted, hoist
from engine.rewrite import read_model
from export.siblings import merge_siblings
from export.weights import save_graph

_LOGGER = logging.getLogger("zturbo.export")
NAME = "prologue"


def split_graph(graph: Graph, folder: Path, name: str = NAME) -> tuple[Graph, ...]:
    """The graph, or in its place the prologue that was hoisted out of it and the rest, written where it lay.

    folder: the bundle's. name: of the prologue, and of its wires. Only a graph of the loop has one. A graph that
    cannot be followed, as of a foreign operator or a branch, stays whole; that is logged.
    """
    path = folder / graph.file
    if graph.stage != "loop" or all(binding.lifetime != "per_row" for binding in graph.inputs):
        return (graph,)
    try:
        hoisted = hoist(read_model(path.read_bytes(), path.parent), graph.inputs, name)
    except ValueError as error:
        _LOGGER.warning("graph '%s' has no prologue, for it cannot be followed: %s", graph.name, error)
        return (graph,)
    if hoisted is None:
        return (graph,)
    merge_siblings(hoisted.prologue, path.parent)
    own = path.with_name(f"{name}.onnx")
    for model, place in ((hoisted.prologue, own), (hoisted.rest, path)):  # the rest last: its weights lie at its place
        save_graph(model, place)
        onnx.checker.check_model(str(place), full_check=True)
    return prologue_of(graph, hoisted, name, own.relative_to(folder).as_posix()), rest_of(graph, hoisted)


def prologue_of(graph: Graph, hoisted: Hoisted, name: str, file: str) -> Graph:
    """What bundle.json says of the prologue."""
    return Graph(
        name=name, stage="once", file=file, precision=graph.precision, hoisted_from=graph.name,
        inputs=_named(hoisted.prologue, graph.inputs), outputs=hoisted.wires,
    )  # fmt: skip


def rest_of(graph: Graph, hoisted: Hoisted) -> Graph:
    """What bundle.json says of the rest."""
    return msgspec.structs.replace(graph, inputs=_named(hoisted.rest, (*graph.inputs, *hoisted.wires)))


def _named(model: onnx.ModelProto, bindings: tuple[Binding, ...]) -> tuple[Binding, ...]:
    """The bindings of a model's inputs, in the model's order."""
    by_name = {binding.name: binding for binding in bindings}
    return tuple(by_name[value.name] for value in model.graph.input)


def by_stage(graphs: list[Graph]) -> tuple[Graph, ...]:
    """The graphs in the order that they run in: a prologue was made where its graph of the loop is."""
    return tuple(sorted(graphs, key=lambda graph: get_args(Stage).index(graph.stage)))
