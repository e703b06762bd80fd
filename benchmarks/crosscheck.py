"""A second opinion on a bundle's graphs and plans, by other people's code: ONNX Runtime and Polygraphy's Comparator.

`python -m benchmarks.crosscheck trt_models/emoji`. Each graph runs on what reference.npz recorded, in fp32 and in fp16
on ONNX Runtime, and where TensorRT, a GPU and plans are here by Polygraphy's TensorRT runner, part after part. Nothing
of the parity gate (engine/gate.py) is used but the bounds. The most exact of them is compared with what reference.npz
recorded, and the others with it. Prints a table, what was not checked and why, and one JSON line; exits with 1 where
something is further off than allowed, or nothing could be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, versions
from benchmarks.polygraphy_tools import load_tools
from benchmarks.report import as_json
from engine.binding import Binding, Graph, PlanPrecision, Precision, symbols_of, variant_of
from engine.bundle import Bundle, load_bundle, verified_graph, verified_path
from engine.catalog import PlanSet, find_plans
from engine.compare import allowed_error, difference
from engine.cuda import Cuda
from engine.dialect import FLAVOURS, load_dialect
from engine.errors import BackendUnavailable, ZturboError
from engine.machine import machine_of
from engine.plan import verified_plan
from engine.schema import ReferenceCase
from engine.verdict import Comparison

RECORDED = "reference.npz"


class Row(Comparison, frozen=True):
    """One output of one contender beside another's, or RECORDED. error: −1 where values are not finite on any side."""

    contender: str
    against: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crosscheck", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", choices=list(FLAVOURS), help="whose plans; default: the first that can run here")
    parser.add_argument("--precision", choices=["fp16", "bf16", "fp32"], default="fp16")
    asked = parser.parse_args(arguments)
    try:
        bundle = load_bundle(asked.bundle)
        sets, not_checked = plan_sets(asked.bundle, bundle, asked.target, asked.precision)
        check = Check(asked.bundle, bundle, asked.precision, sets)
        rows = list(check.rows())
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print_rows(rows, not_checked + check.not_checked)
    passed = bool(rows) and all(row.passed for row in rows)
    print(as_json({
        "crosscheck": bundle.name, "passed": passed, "rows": [msgspec.to_builtins(row) for row in rows],
        "not_checked": not_checked + check.not_checked, "machine": machine(), "versions": versions(),
    }, indent=None))  # fmt: skip
    return 0 if passed else 1


def plan_sets(
    folder: Path, bundle: Bundle, target: str | None, precision: PlanPrecision
) -> tuple[list[PlanSet], list[str]]:
    """The sets of plans that can run here, of one flavour, and in words why others cannot."""
    reasons: list[str] = []
    for name in FLAVOURS if target is None else [target]:
        try:
            dialect = load_dialect(name)
            here = machine_of(Cuda(extra=dialect.flavour.extra))
            catalog = find_plans(folder, bundle, precision, dialect, here)
        except BackendUnavailable as error:
            reasons.append(f"plans of {name}: {error.actual}")
            continue
        reasons += [f"plans of {name}: {problem.subject}: {problem.actual}" for problem in catalog.problems]
        if catalog.sets:
            return list(catalog.sets), reasons
        reasons.append(f"plans of {name}: none for {dialect.version} and this GPU")
    return [], reasons


class Check:
    """Runs a bundle's graphs and some sets of its plans. not_checked: cases that no plan covers, in words.

    A prologue runs with the graph that it was hoisted out of, for what it hands on is each variant's own affair.
    """

    def __init__(self, folder: Path, bundle: Bundle, precision: PlanPrecision, sets: Sequence[PlanSet]) -> None:
        self._folder, self._bundle, self._precision, self._sets = folder, bundle, precision, sets
        self._flavour = sets[0].target.flavour if sets else "tensorrt"
        self._variant = variant_of(precision)
        self._tools = load_tools(self._flavour)
        self.not_checked: list[str] = []

    def rows(self) -> Iterator[Row]:
        """Every comparison, graph by graph. Raises ZturboError."""
        path = verified_path(self._folder, self._bundle, self._bundle.reference.file)
        with np.load(path, allow_pickle=False) as arrays:
            for graph in self._bundle.graphs(self._variant):
                for case in self._bundle.reference.cases if not graph.hoisted_from else ():
                    yield from self._case(graph, case, arrays)

    def _case(self, graph: Graph, case: ReferenceCase, arrays: Any) -> Iterator[Row]:
        """One graph at one case: all contenders get the same arrays, in the types of the variant.

        Beside the record the exact one gets what was recorded, unrounded.
        """
        inputs = external_inputs(self._chain(graph.name, self._variant))
        prefix = f"{case.name}/{graph.name}/"
        feed = {one.name: arrays[prefix + one.name].astype(one.dtype) for one in inputs}
        exact: Precision = "fp32" if "fp32" in self._bundle.variants else self._variant
        runners = [self._ort(graph, inputs, exact)]
        if exact != self._variant:
            runners.append(self._ort(graph, inputs, self._variant))
        runners += self._plans(graph, inputs, case)
        results = self._tools.comparator.run(runners, data_loader=[feed])
        compared = Differences(graph, case, self._precision)
        recorded = {one.name: arrays[prefix + one.name] for one in graph.outputs}
        compared.add(f"ONNX Runtime {exact}", self._exact(graph, exact, prefix, arrays), RECORDED, recorded, exact)
        if len(runners) > 1:
            pairs = [(0, index) for index in range(1, len(runners))]
            self._tools.comparator.compare_accuracy(results, comparisons=pairs, compare_func=compared)
        yield from compared.rows

    def _exact(self, graph: Graph, variant: Precision, prefix: str, arrays: Any) -> Any:
        """The outputs of a variant for a case's arrays, in its own types."""
        inputs = external_inputs(self._chain(graph.name, variant))
        feed = {one.name: arrays[prefix + one.name].astype(one.dtype) for one in inputs}
        ((_, (found, *_)),) = self._tools.comparator.run([self._ort(graph, inputs, variant)], data_loader=[feed])
        return found

    def _chain(self, graph: str, variant: Precision) -> list[Graph]:
        """The graph's prologue in a variant, where it has one, and the graph."""
        graphs = self._bundle.graphs(variant)
        return [one for one in graphs if graph in (one.hoisted_from, one.name)]

    def _ort(self, graph: Graph, inputs: Sequence[Binding], variant: Precision) -> Any:
        """A graph of a variant in ONNX Runtime; its inputs are cast to what it takes."""
        paths = [verified_graph(self._folder, self._bundle, one) for one in self._chain(graph.name, variant)]
        runners = [self._tools.onnxruntime(str(path)) for path in paths]
        return self._tools.chain(f"ONNX Runtime {variant}", inputs, graph.outputs, runners, one_by_one=False)

    def _plans(self, graph: Graph, inputs: Sequence[Binding], case: ReferenceCase) -> Iterator[Any]:
        """The graph's plans of every set, once for each profile that covers the case."""
        chain = self._chain(graph.name, self._variant)
        dims = {name: size for name, size in case.dims.items() if name in symbols_of(chain)}
        for plans in self._sets:
            indices = [index for index, profile in enumerate(plans.profiles) if profile.covers(dims)]
            if graph.name in plans.absent:
                self.not_checked.append(f"{graph.name}: no plan in {plans.name}")
                continue
            if not indices:
                self.not_checked.append(f"{graph.name}, case {case.name}: outside {plans.name}")
            found = [verified_plan(path, info, plans.remedy) for one in chain for path, info in plans.plans[one.name]]
            of = f" in {len(plans.plans[graph.name])} parts" if len(plans.plans[graph.name]) > 1 else ""
            for index in indices:
                runners = [self._tools.tensorrt(raw, index) for raw in found]
                name = f"{self._flavour} {plans.profiles[index]}{of}"
                yield self._tools.chain(name, inputs, graph.outputs, runners, one_by_one=graph.one_by_one)


class Differences:
    """A compare_func for Polygraphy's Comparator: the relative error in float64, beside the parity gate's bounds."""

    def __init__(self, graph: Graph, case: ReferenceCase, precision: PlanPrecision) -> None:
        self._graph, self._case, self._precision = graph, case, precision
        self.rows: list[Row] = []

    def __call__(self, exact: Any, found: Any) -> dict[str, bool]:
        """{output: whether it is close enough}; both have the outputs by name, and the runner's name."""
        rows = self.add(found.runner_name, found, exact.runner_name, exact, self._precision)
        return {row.output: row.passed for row in rows}

    def add(self, name: str, found: Any, against: str, exact: Any, precision: PlanPrecision) -> list[Row]:
        """Compare every output, at the bounds of a precision."""
        errors, rows = self._case.fp16_error.get(self._graph.name, {}), list[Row]()
        for binding in self._graph.outputs:
            actual, expected = found[binding.name], exact[binding.name]
            error, not_finite = difference(actual, expected)
            unknown = int(np.count_nonzero(~np.isfinite(expected)))  # which difference leaves out
            rows.append(Row(
                graph=self._graph.name, case=self._case.name, contender=name, against=against, output=binding.name,
                error=-1.0 if unknown else error, not_finite=not_finite + unknown,
                allowed=allowed_error(binding.dtype, precision, errors.get(binding.name, 0.0)),
            ))  # fmt: skip
        self.rows += rows
        return rows


def external_inputs(chain: Sequence[Graph]) -> list[Binding]:
    """What no graph of the chain makes."""
    made = {binding.name for graph in chain for binding in graph.outputs}
    return list({one.name: one for graph in chain for one in graph.inputs if one.name not in made}.values())


def print_rows(rows: Sequence[Row], not_checked: Sequence[str]) -> None:
    """The comparisons as a table, and what was not checked."""
    table = Table("graph", "case", "contender", "against", "output", "error", "allowed", "")
    for row in rows:
        found = f"{row.not_finite} not finite" if row.not_finite else f"{row.error:.1e}"
        words = "ok" if row.passed else "MISSES"
        table.add_row(row.graph, row.case, row.contender, row.against, row.output, found, f"{row.allowed:.1e}", words)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    for line in not_checked:
        console.print(f"not checked: {line}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
