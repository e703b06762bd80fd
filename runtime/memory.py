"""The wiring of one shape: one buffer per wire, and every graph bound to them.

An output feeds every later input of its name, so a wire is a buffer. Carried wires are pairs (`latents`,
`next_latents`) that change places after each step: the loop is bound twice, and no copy is made. What a turn of the
loop launches is captured as one where the backend can. What a picture can be painted without is bound when it is first
needed (runtime/optional.py). Knows no graph by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from engine.binding import Array, Dims, Graph
from engine.wiring import swapped
from runtime.backends.base import Backend, Buffer, Launch, in_order
from runtime.optional import OptionalGraphs

MAX_WIRINGS = 4
"""Shapes whose buffers and captures stay; the least recently used goes first."""
Phase = Literal["conditioning", "once", "loop", "final", "preview"]
"""What is launched at a time: `conditioning` is of stage `once`, and comes before the rest of it."""
TURNS: dict[Phase, int] = {"conditioning": 1, "once": 1, "loop": 2, "final": 2, "preview": 2}
"""In how many positions of the carried pairs a phase is launched: before the first step they have not moved."""


class Wiring:
    """Buffers and launches of one set of dims.

    conditioning: the graphs of stage `once` that may be left out where their outputs are known. conditioned: the wires
    that then have to be filled; read_by_row: those of the host that they follow from. position: steps since `once` was
    launched. moment: raised by every launch but a preview's and at the end of a loop, so that a step can tell whether
    it is over.
    """

    def __init__(
        self, backend: Backend, graphs: Sequence[Graph], dims: Dims, conditioning: Sequence[Graph] = (),
        conditioned: Sequence[str] = (), read_by_row: Sequence[str] = (),
    ) -> None:  # fmt: skip
        needed = [graph for graph in graphs if not graph.optional]
        bindings = {binding.name: binding for graph in needed for binding in graph.bindings}
        self.buffers: dict[str, Buffer] = {name: backend.allocate(binding, dims) for name, binding in bindings.items()}
        self.dims, self.conditioned, self.read_by_row = dict(dims), tuple(conditioned), tuple(read_by_row)
        self.position = self.moment = 0
        self._written: dict[str, Array | None] = {}
        self._turns = (self.buffers, swapped(needed, self.buffers))
        self._optional = OptionalGraphs(backend, [graph for graph in graphs if graph.optional], self._turns, dims)
        phases: dict[Phase, list[Graph]] = {phase: [] for phase in TURNS}
        for graph in needed:
            phases["conditioning" if graph in conditioning else graph.stage].append(graph)
        self._launches = {
            phase: tuple(_bound(backend, phase, phases[phase], turn, dims) for turn in self._turns[:count])
            for phase, count in TURNS.items()
        }

    def prepare(self, given: Collection[str]) -> None:
        """Bind what a batch needs whose host gives these wires beside those that every batch has.

        Raises what the backend's bind raises, as PlanError where TensorRT has no plan.
        """
        self._optional.prepare(given)

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Copy the host's arrays in; every wire that no graph makes must be among them, and what none reads may be."""
        self._optional.prepare(arrays)
        for name, array in arrays.items():
            fixed = not array.flags.writeable  # nobody changes it, so there is no need to write it again
            if name in self.buffers and not (fixed and self._written.get(name) is array):
                self.buffers[name].write(array)
                self._written[name] = array if fixed else None
        self._optional.blank(arrays)

    def launch(self, phase: Phase) -> None:
        """Launch a phase's graphs in order; after `loop` the carried pairs have changed places."""
        turn = self.position % TURNS[phase]
        if phase == "preview":
            self._optional.launch_previews(turn)
            return
        self.moment += 1
        if phase == "once":
            self.position = turn = 0
            self._optional.launch_given()
        self._launches[phase][turn]()
        if phase == "loop":
            self.position += 1

    def has(self, name: str) -> bool:
        """Whether there is such a wire, or will be once its graph is bound."""
        return name in self.buffers or self._optional.makes(name)

    def read(self, name: str) -> Array:
        """A wire's value on the host, after what was launched."""
        return self._turns[self.position % 2][name].read()


def _bound(
    backend: Backend, phase: Phase, graphs: Sequence[Graph], buffers: Mapping[str, Buffer], dims: Dims
) -> Launch:
    launches = [backend.bind(graph, buffers, dims) for graph in graphs]
    return backend.capture(launches) if phase == "loop" else in_order(launches)


class Wirings:
    """The wirings in use, at most MAX_WIRINGS of them."""

    def __init__(self, make: Callable[[Dims], Wiring]) -> None:
        self._make = make
        self._kept: OrderedDict[tuple[tuple[str, int], ...], Wiring] = OrderedDict()

    def get(self, dims: Dims) -> Wiring:
        """The wiring of these dims, made where there is none."""
        key = tuple(sorted(dims.items()))
        if key not in self._kept:
            while len(self._kept) >= MAX_WIRINGS:
                self._kept.popitem(last=False)
            self._kept[key] = self._make(dims)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Drop every wiring."""
        self._kept.clear()
