"""The parity gate: a set's plans beside the recorded fp32 torch outputs, graph by graph, then in a short loop.

A prologue is judged with the graph that it was hoisted out of. Knows no graph by name, not how an engine is run
(engine/gate_runs.py), and not what becomes of a verdict (engine/gating.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from engine.binding import Array, Dims, Graph, symbols_of, variant_of
from engine.bundle import Bundle, load_bundle, verified_path
from engine.compare import allowed_error, compared, miss_text
from engine.cuda import Cuda
from engine.device import Device
from engine.dialect import load_dialect
from engine.errors import ExecutionFailed
from engine.first_miss import first_miss
from engine.gate_runs import Ran, Runs, recorded
from engine.job import GateJob
from engine.machine import Machine, machine_of
from engine.profiles import Profile, parse_profile, size_text
from engine.schema import LoopCase, ReferenceCase
from engine.verdict import Comparison, Status, Verdict
from engine.wiring import IMAGES

LATENTS = "latents"
_NO_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)


def gate(job: GateJob) -> dict[str, Verdict]:
    """Judge the plans of one set: {graph: verdict}. A graph of which nothing could be said is left out.

    Raises BundleError, PlanError or BackendUnavailable; ExecutionFailed where the GPU's memory does not suffice.
    """
    folder = Path(job.folder)
    bundle, dialect = load_bundle(folder), load_dialect(job.flavour)
    profiles = [parse_profile(text, bundle) for text in job.profiles]
    path = verified_path(folder, bundle, bundle.reference.file)
    cuda = Cuda(extra=dialect.flavour.extra)
    machine, device = machine_of(cuda), Device(cuda)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            runs = Runs(job, bundle, profiles, dialect, device, machine.compute_capability, arrays)
            return Judge(folder, bundle, job, profiles, runs, arrays).verdicts(machine)
    finally:
        with contextlib.suppress(ExecutionFailed):  # after a launch that went wrong every call repeats its error
            device.close()


class Judge:
    """What is found of each graph, a prologue's under the graph it was hoisted out of."""

    def __init__(
        self, folder: Path, bundle: Bundle, job: GateJob, profiles: Sequence[Profile], runs: Runs,
        arrays: Mapping[str, Array],
    ) -> None:  # fmt: skip
        self._folder, self._reference, self._precision = folder, bundle.reference, job.precision
        self._profiles, self._runs, self._arrays = profiles, runs, arrays
        self._tolerance = job.tolerance
        every = bundle.graphs(variant_of(job.precision))
        self._graphs = [graph for graph in every if graph.name in job.plans]
        self._whole = len(self._graphs) == len(every)
        judged = [graph.name for graph in self._graphs if not graph.hoisted_from]
        self._found: dict[str, list[Comparison]] = {name: [] for name in judged}
        self._ungated: dict[str, list[str]] = {name: [] for name in judged}
        self._reasons: dict[str, str] = {}
        self._unusable = False

    def verdicts(self, machine: Machine) -> dict[str, Verdict]:
        """Compare all that can be compared. Raises as `gate` does."""
        for graph in self._graphs:
            self._blame(graph, partial(self._runs.load, graph))
        for graph in self._graphs:
            if not graph.hoisted_from:
                self._blame(graph, partial(self._compare_graph, graph))
        self._compare_loop()
        judged = {graph.name: graph.hoisted_from or graph.name for graph in self._graphs}
        return {name: self._verdict(whole, machine) for name, whole in judged.items()
                if whole in self._reasons or not self._unusable}  # fmt: skip

    def _blame(self, graph: Graph, step: Callable[[], None]) -> None:
        """Do what is the graph's fault where it fails. Raises ExecutionFailed where memory ran out: no one's fault.

        A launch that goes wrong can leave the GPU's context unusable: then nothing is said of the other graphs.
        """
        name = graph.hoisted_from or graph.name
        if self._unusable or name in self._reasons:
            return
        try:
            step()
        except ExecutionFailed as error:
            if _NO_MEMORY.search(error.actual):
                raise
            self._reasons[name] = f"{error.subject}: {error.actual}"
            try:
                self._runs.synchronize()
            except ExecutionFailed:
                self._unusable = True

    def _compare_graph(self, graph: Graph) -> None:
        """A graph at every case, with each profile that covers it."""
        chain = [one for one in self._graphs if one.hoisted_from == graph.name] + [graph]
        used = symbols_of(chain)
        fitting = dict.fromkeys(range(len(self._profiles)), 0)
        for case in self._reference.cases:
            indices = self._covering({name: size for name, size in case.dims.items() if name in used})
            if not indices:
                self._ungated[graph.name].append(f"case {case.name} ({_dims_text(case.dims)}): in no profile")
            for index in indices:
                fitting[index] += 1
                self._compare_case(graph, chain, case, index)
        for index, count in fitting.items():
            if not count:
                self._ungated[graph.name].append(f"profile {self._profiles[index]}: no case of the reference fits it")

    def _compare_case(self, graph: Graph, chain: Sequence[Graph], case: ReferenceCase, profile: int) -> None:
        prefix, label = f"{case.name}/{graph.name}/", self._label(case.name, profile)
        ran = self._runs.run(chain, prefix, case.dims, profile)
        errors, types = case.fp16_error.get(graph.name, {}), {binding.name: binding.dtype for binding in graph.outputs}
        found = []
        for name, actual in ran.outputs.items():
            loses = errors.get(name, 0.0)
            allowed = allowed_error(types[name], self._precision, loses, tolerance=self._tolerance)
            found.append(compared(label, graph.name, name, (actual, recorded(self._arrays, prefix + name)), allowed))
        self._found[graph.name] += found
        missed = [one for one in found if not one.passed]
        if missed:
            lines = [*map(miss_text, missed), self._part(graph, ran, found)]
            self._reasons.setdefault(graph.name, "; ".join(filter(None, lines)))

    def _part(self, graph: Graph, ran: Ran, found: Sequence[Comparison]) -> str:
        """Which part of a graph in several misses first."""
        count, limit = self._runs.parts(graph), max(one.allowed for one in found)
        return first_miss(self._folder, graph, count, ran.inputs, ran.inner, limit) if count > 1 else ""

    def _compare_loop(self) -> None:
        """All stages together, where every graph passed by itself. A miss is the loop's fault, or where the latents
        are right and the images are not, the last stage's.
        """
        loop = self._reference.loop
        indices = [] if loop is None else self._covering(loop.dims)
        if self._reasons or not indices or not self._whole or loop is None:
            problem = "none was recorded"
            if loop is not None:
                problem = f"in no profile ({_dims_text(loop.dims)})" if self._whole else "not all graphs ran"
            self._tell(f"loop: {'a graph was rejected before' if self._reasons else problem}")
            return
        for index in indices:
            self._blame(_last(self._graphs, "loop"), partial(self._compare_run, loop, index))

    def _compare_run(self, case: LoopCase, profile: int) -> None:
        label = self._label("loop", profile)
        graphs = self._runs.launched(self._graphs)
        made = {b.name: (graph, b) for graph in graphs for b in graph.bindings
                if b.name in (LATENTS, IMAGES) and (b in graph.outputs or b.name in graph.carried)}  # fmt: skip
        found = []
        for name, actual in self._runs.loop(case, graphs, list(made), profile).items():
            graph, binding = made[name]
            loses = case.fp16_error.get(name, 0.0)
            allowed = allowed_error(binding.dtype, self._precision, loses, loop=True, tolerance=self._tolerance)
            found.append(compared(label, graph.name, name, (actual, recorded(self._arrays, f"loop/{name}")), allowed))
        missed = [one for one in found if not one.passed]
        blamed = "loop" if any(one.output == LATENTS for one in missed) else "final"
        for graph in graphs:
            if graph.name in self._found and (not missed or graph.stage == blamed):
                self._found[graph.name] += found
                if missed:
                    self._reasons[graph.name] = "; ".join(map(miss_text, missed))

    def _tell(self, line: str) -> None:
        for lines in self._ungated.values():
            lines.append(line)

    def _covering(self, dims: Dims) -> list[int]:
        """The indices of the profiles that cover these dims."""
        return [index for index, profile in enumerate(self._profiles) if profile.covers(dims)]

    def _label(self, case: str, profile: int) -> str:
        """A case's name, and of plans of several profiles which it ran with."""
        return case if len(self._profiles) == 1 else f"{case}, {self._profiles[profile]}"

    def _verdict(self, name: str, machine: Machine) -> Verdict:
        found, ungated = tuple(self._found[name]), tuple(self._ungated[name])
        reason = self._reasons.get(name, "" if found else "no recorded case fits the profiles")
        status: Status = "rejected" if name in self._reasons else "passed" if found else "unverified"
        return Verdict(
            status=status, reason=reason, machine=machine, comparisons=found, ungated=ungated, tolerance=self._tolerance
        )


def _dims_text(dims: Dims) -> str:
    """As a person asks for it: `256x256, rows 2, samples 1`."""
    size = [size_text(dims["width"], dims["height"])] if {"width", "height"} <= set(dims) else []
    return ", ".join([*size, *(f"{name} {dims[name]}" for name in ("rows", "samples", "tokens") if name in dims)])


def _last(graphs: Sequence[Graph], stage: str) -> Graph:
    return next((graph for graph in reversed(graphs) if graph.stage == stage), graphs[-1])
