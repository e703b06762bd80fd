"""The graphs of one precision: written, split, checked. Does not know how they are traced nor what is hoisted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.binding import Graph, Precision
from export import reference
from export.check import Sessions, check_graph, check_loop
from export.families import Model
from export.graph import GraphSpec, example_dims, onnx_from_module, run_module
from export.largest import Ranges, check_range
from export.loop import Loop, Run, loop_errors
from export.prologue import NAME, by_stage, split_graph
from export.untrusted import running

Case = tuple[reference.Arrays, reference.Arrays]
Cases = dict[str, dict[str, Case]]
"""{graph: {case: (inputs, outputs)}}, fp32."""
CaseErrors = dict[str, dict[str, dict[str, float]]]
"""{case: {graph: {output: torch's own fp16 error}}}."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What torch computed in fp32: every graph by itself, and all of them in a short loop. ranges: of the former."""

    cases: Cases
    loop: Loop
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Errors:
    """What torch's own fp16 loses against that; empty of fp32."""

    cases: CaseErrors
    loop: dict[str, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """The graphs of one precision, in the order they run in."""

    graphs: tuple[Graph, ...]
    errors: Errors


def export_variant(
    model: Model,
    precision: Precision,
    specs: Sequence[GraphSpec],
    folder: Path,
    recorded: Recorded,
    steps: Callable[[str], None],
) -> Variant:
    """Write and check every graph of one precision; the fp32 modules take their lean form in it."""
    if precision == "fp16":
        check_range(recorded.ranges.found, specs)
    errors = fp16_errors(specs, recorded) if precision == "fp16" else Errors({}, {})
    graphs: list[Graph] = []
    sessions = Sessions(folder)
    for spec in specs:
        steps(f"{spec.name} {precision}")
        chain = write_chain(model, spec, precision, folder, graphs)
        own = {case: by_graph[spec.name] for case, by_graph in errors.cases.items()}
        sessions.add(chain)
        check_graph(spec, precision, chain, sessions.run, checked_cases(model, recorded.cases[spec.name]), own)
        graphs += chain
    steps(f"loop {precision}")
    check_loop(recorded.loop, precision, by_stage(graphs), sessions.run, errors.loop)
    return Variant(by_stage(graphs), errors)


def write_chain(
    model: Model, spec: GraphSpec, precision: Precision, folder: Path, before: Sequence[Graph]
) -> tuple[Graph, ...]:
    """Write one module's graph, or in its place the prologue that is hoisted out of it and the rest. before: others."""
    written = write_graph(model, spec, f"graphs/{precision}/{spec.name}.onnx", folder)
    first = all(graph.name != NAME for graph in before)
    return split_graph(written, folder, NAME if first else f"{NAME}_{spec.name}")


def unchecked_variant(
    model: Model, precision: Precision, device: str, folder: Path, steps: Callable[[str], None]
) -> Variant:
    """Write every graph of one precision, each with no module in memory but its own; none is run as a whole."""
    graphs: list[Graph] = []
    for name in model.graphs:
        steps(f"{name} {precision}")
        (spec,) = model.specs(precision, (name,))
        if not spec.hollow:
            spec.module.to(device)
        with running(model.source, spec.name):
            graphs += write_chain(model, spec, precision, folder, graphs)
        del spec
    return Variant(by_stage(graphs), Errors({}, {}))


def checked_cases(model: Model, cases: Mapping[str, Case]) -> dict[str, Case]:
    """Those that ONNX Runtime's CPU provider runs: of a large model not the default, minutes for each graph there.

    The gate of a build judges that one, on the machine that runs it.
    """
    return {name: case for name, case in cases.items() if not (model.large and name == "default")}


def write_graph(model: Model, spec: GraphSpec, file: str, folder: Path) -> Graph:
    """Trace one module into the bundle's folder, at sizes of its own."""
    dims = example_dims(reference.cases(model)["default"], model.limits.multiple_px)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_from_module(spec, reference.seeded_inputs(spec.inputs, dims, 0, model), path)
    return spec.graph(file)


def fp16_errors(specs: Sequence[GraphSpec], recorded: Recorded) -> Errors:
    """What torch's own fp16 loses at each case, and in the loop. specs: those of fp16."""
    errors: CaseErrors = {}
    for spec in specs:
        for case, (inputs, expected) in recorded.cases[spec.name].items():
            outputs = run_module(spec, inputs)
            found = {name: reference.relative_error(outputs[name], expected[name]) for name in outputs}
            errors.setdefault(case, {})[spec.name] = found
    return Errors(errors, loop_errors(recorded.loop, specs, runs(specs)))


def runs(specs: Sequence[GraphSpec]) -> Run:
    """What runs these specs' modules by name."""
    by_name = {spec.name: spec for spec in specs}
    return lambda name, inputs: run_module(by_name[name], inputs)
