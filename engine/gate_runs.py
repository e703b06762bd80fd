"""A set's engines run on what reference.npz recorded: one graph at a time, or all of them as a loop.

Compares nothing. Knows no graph by name; buffers are wired by the names of bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.arena import Arena
from engine.binding import Array, Binding, Dims, Graph
from engine.bundle import Bundle
from engine.context import Bound, Engines
from engine.device import Device, DeviceTensor
from engine.dialect import Dialect
from engine.errors import BundleInvalid
from engine.job import GateJob
from engine.one_by_one import OneByOne, bound_graph
from engine.plan import Part, build_remedy, check_identity, identity_of, read_info, verified_plan
from engine.profiles import Profile
from engine.schema import LoopCase
from engine.wiring import launched, swapped

Wires = dict[str, DeviceTensor]


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a graph. inputs: what it was fed; outputs: what it made; inner: reads what its parts handed on.

    Of a graph through which samples pass one by one, inputs and inner are the last sample's.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    inner: Callable[[str], Array]


class Runs:
    """The engines of one set of plans on one device. capability: the GPU's. arrays: of reference.npz."""

    def __init__(
        self, job: GateJob, bundle: Bundle, profiles: Sequence[Profile], dialect: Dialect, device: Device,
        capability: str, arrays: Mapping[str, Array],
    ) -> None:  # fmt: skip
        self._job, self._bundle, self._profiles = job, bundle, tuple(profiles)
        self._dialect, self._device, self._capability, self._arrays = dialect, device, capability, arrays
        self._arena, self._engines = Arena(device), dict[str, Engines]()

    def load(self, graph: Graph) -> None:
        """Verify and deserialize a graph's plans. Raises PlanError or ExecutionFailed."""
        self._engines[graph.name] = Engines(self._dialect, self._device, self._plans(graph), self._arena)

    def synchronize(self) -> None:
        """Wait for all that was launched. Raises ExecutionFailed."""
        self._device.synchronize()

    def run(self, chain: Sequence[Graph], prefix: str, dims: Dims, profile: int) -> Ran:
        """Run the graphs in turn on the inputs recorded under a prefix, `<case>/<graph>/`; what the last one made.

        profile: its index. Raises ExecutionFailed, or BundleInvalid for an input that was not recorded.
        """
        wires = self._allocated(chain, dims)
        made = {binding.name for graph in chain for binding in graph.outputs}
        feeds = {b.name: b for graph in chain for b in graph.inputs if b.name not in made}
        inputs = {name: self._recorded(prefix, binding) for name, binding in feeds.items()}
        for name, array in inputs.items():
            wires[name].write(array)
        launches = [self._bound(graph, wires, profile) for graph in chain]
        for launch in launches:
            launch()
        last = chain[-1]
        inputs |= {binding.name: wires[binding.name].read() for binding in last.inputs if binding.name in made}
        outputs = {binding.name: wires[binding.name].read() for binding in last.outputs}
        if last.one_by_one:
            inputs = {name: array[-1:] for name, array in inputs.items()}
        return Ran(inputs, outputs, lambda name: launches[-1].tensors[name].read())

    def loop(self, case: LoopCase, graphs: Sequence[Graph], results: Sequence[str], profile: int) -> dict[str, Array]:
        """Run all stages as the runtime does, carried pairs changing places after each step; the results by wire.

        case: what was recorded. graphs: those that its wires suffice for; see `launched`. Raises ExecutionFailed, or
        BundleInvalid for an input that was not recorded.
        """
        wires = self._allocated(graphs, case.dims)
        turns = wires, swapped(graphs, wires)
        known: set[str] = set()
        for graph in graphs:
            for binding in graph.inputs:
                if binding.name not in known:
                    wires[binding.name].write(self._recorded("loop/", binding))
            known |= {binding.name for binding in graph.bindings}
        staged = {stage: [g for g in graphs if g.stage == stage] for stage in ("once", "loop", "final")}
        step = [[self._bound(graph, turn, profile) for graph in staged["loop"]] for turn in turns]
        end = turns[case.evaluations % 2]
        for graph in staged["once"]:
            self._bound(graph, wires, profile)()
        for index in range(case.evaluations):
            for launch in step[index % 2]:
                launch()
        for graph in staged["final"]:
            self._bound(graph, end, profile)()
        return {name: end[name].read() for name in results}

    def launched(self, graphs: Sequence[Graph]) -> list[Graph]:
        """The graphs that the recorded loop ran."""
        given = {key.removeprefix("loop/") for key in self._arrays if key.startswith("loop/")}
        return launched(graphs, given)

    def parts(self, graph: Graph) -> int:
        """Of how many parts a graph's chain is."""
        return len(self._job.plans[graph.name])

    def _plans(self, graph: Graph) -> Iterator[tuple[str, Part, bytes]]:
        """The verified bytes of a graph's plans; each was made for this bundle, this TensorRT and this GPU."""
        job, dialect, paths = self._job, self._dialect, self._job.plans[graph.name]
        remedy = build_remedy(
            Path(job.folder), job.flavour, " ".join(job.profiles), job.precision, shared=len(job.profiles) > 1
        )
        for index, path in enumerate(map(Path, paths), 1):
            part = index, len(paths)
            expected = identity_of(
                self._bundle, graph, job.precision, self._profiles, dialect.flavour.name, dialect.version,
                (self._capability,), part,
            )  # fmt: skip
            info = read_info(path, remedy)
            check_identity(path, info.identity, expected, remedy)
            yield graph.name, part, verified_plan(path, info, remedy)

    def _allocated(self, graphs: Sequence[Graph], dims: Dims) -> Wires:
        """A tensor for each wire of the graphs."""
        bindings = {binding.name: binding for graph in graphs for binding in graph.bindings}
        return {name: self._device.tensor(b.resolve(dims), b.dtype) for name, b in bindings.items()}

    def _bound(self, graph: Graph, wires: Wires, profile: int) -> Bound | OneByOne:
        own = {binding.name: wires[binding.name] for binding in graph.bindings}
        return bound_graph(self._engines[graph.name], self._device, graph, own, profile)

    def _recorded(self, prefix: str, binding: Binding) -> Array:
        return recorded(self._arrays, prefix + binding.name).astype(binding.dtype)


def recorded(arrays: Mapping[str, Array], key: str) -> Array:
    """An array of reference.npz. Raises BundleInvalid where it has none of this name."""
    try:
        return arrays[key]
    except KeyError as error:
        raise BundleInvalid(
            f"reference.npz, '{key}'", actual="no such array", allowed="what the graphs read and make",
            remedy="Run `zturbo export` again.",
        ) from error  # fmt: skip
