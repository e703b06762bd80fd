"""A short run of all stages: what a backend's whole chain is judged by, where the graphs alone say nothing of wiring.

Graphs are wired by name and staged as the runtime does it; knows no family. What runs a graph is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.binding import Graph, Stage
from engine.schema import LoopCase
from engine.tablefile import Stored
from engine.wiring import IMAGES, LORA, launched
from export.families import Model
from export.graph import GraphSpec
from export.reference import Arrays, loop_dims, lora_values, relative_error, token_weights
from export.solver import COLUMNS, ROWS, Table

EVALUATIONS = 4
"""Enough for every table's history to fill, and for a wrong wire to show."""
LATENTS = "latents"
RESULTS = (LATENTS, IMAGES)
KEEP_COLUMNS = ("a", "s")
"""1 in these and 0 elsewhere is the row that leaves latents as they are; it pads a table."""
SEED = 2026

Node = GraphSpec | Graph
Run = Callable[[str, Arrays], Arrays]
"""(graph, its inputs) → its outputs."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A recorded run. host: what the host feeds, by wire; results: `latents` and `images` at the end, of fp32."""

    dims: dict[str, int]
    evaluations: int
    host: Arrays
    results: Arrays

    def arrays(self) -> Arrays:
        """All of it by wire, as reference.npz holds it."""
        return {**self.host, **self.results}

    def case(self, fp16_error: dict[str, float]) -> LoopCase:
        """What bundle.json says of it."""
        return LoopCase(dims=self.dims, evaluations=self.evaluations, fp16_error=fp16_error)


def record_loop(model: Model, graphs: Sequence[Node], tables: Stored, run: Run) -> Loop:
    """Run the default scheduler over its shortest table of at least EVALUATIONS, guided, at a size that a CPU can run.

    tables: the default scheduler's. graphs: of fp32.
    """
    table = next(t for t in map(tables.at, range(len(tables.counts))) if len(t) > EVALUATIONS)
    dims = {**loop_dims(model), "draws": 1 + int(table[:, COLUMNS.index("j")].max())}
    read = {binding.name for graph in graphs for binding in graph.inputs}
    host = {name: array for name, array in host_inputs(model, table, dims).items() if name in read}
    wires = run_stages(graphs, host, len(table) - 1, run)
    return Loop(dims, len(table) - 1, host, {name: wires[name] for name in RESULTS})


def host_inputs(model: Model, table: Table, dims: Mapping[str, int]) -> Arrays:
    """What the host feeds one guided sample (engine.wiring.host_wires); tokens, weights and noise are seeded.

    A quarter of it is kept from an image, whose latents are given as they are: no graph makes them here.
    """
    rng = np.random.default_rng(SEED)
    rows = dims["rows"]
    input_ids = rng.integers(0, model.vocabulary, (rows, dims["tokens"])).astype(np.int32)
    factor = model.latents.factor
    size = dims["height"], dims["width"]
    latent = model.latents.channels, dims["height"] // factor, dims["width"] // factor
    noise = rng.standard_normal((1, dims["draws"], *latent)).astype(np.float32)
    mask = np.ones((1, 1, *latent[1:]), np.float32)
    mask[..., : latent[1] // 2, : latent[2] // 2] = 0
    guidance = model.defaults.guidance_scale + model.guidance_offset
    inputs = model.lora_inputs
    lora = {} if inputs is None else {LORA: lora_values((rows, inputs.rank, inputs.size), rng)}
    return {
        **lora,
        "input_ids": input_ids,
        "token_weights": token_weights(model, (rows, dims["tokens"]), 0.2, rng),
        "clip_skip": np.zeros(rows, np.int32),
        "time_ids": np.array([[*size, 0, 0, *size]] * rows, np.float32),
        "table": padded(table)[None],
        "noise": noise,
        "guidance_scale": np.array([guidance], np.float32),
        "cond_row": np.array([0], np.int32),
        "uncond_row": np.array([rows - 1], np.int32),
        "sample_of_row": np.zeros(rows, np.int32),
        "image_latents": rng.standard_normal((1, *latent)).astype(np.float32),
        "mask": mask,
    }


def padded(table: Table) -> Table:
    """(ROWS, columns): the table, then rows that change nothing."""
    out = np.zeros((ROWS, len(COLUMNS)), np.float32)
    out[:, [COLUMNS.index(column) for column in KEEP_COLUMNS]] = 1
    out[: len(table)] = table
    return out


def run_stages(graphs: Sequence[Node], host: Arrays, evaluations: int, run: Run) -> Arrays:
    """Every wire as it is at the end; after each pass of the loop a carried output is the next pass's input.

    Only the graphs run that the host's wires suffice for; what the others would make is among those.
    """
    wires = dict(host)
    times: dict[Stage, int] = {"once": 1, "loop": evaluations, "final": 1}
    for stage, count in times.items():
        mine = [graph for graph in launched(graphs, host) if graph.stage == stage]
        for _ in range(count):
            for graph in mine:
                wires |= run(graph.name, {binding.name: wires[binding.name] for binding in graph.inputs})
            wires |= {name: wires[after] for graph in mine for name, after in graph.carried.items()}
    return wires


def loop_errors(loop: Loop, graphs: Sequence[Node], run: Run) -> dict[str, float]:
    """{wire: relative error} of another run of the same loop."""
    wires = run_stages(graphs, loop.host, loop.evaluations, run)
    return {name: relative_error(wires[name], expected) for name, expected in loop.results.items()}
