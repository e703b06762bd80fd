"""A graph bound to a batch, or, where samples pass through it one at a time, launched once for each of them.

Knows no graph by name; what may pass one by one is engine/binding.py's to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.binding import Graph
from engine.context import Bound, Engines
from engine.device import Device, DeviceTensor


class OneByOne:
    """A launch for each entry along the first axis of the batch's tensors, all on one set of execution contexts.

    Entries are copied in and out, for TensorRT wants addresses aligned to 256 bytes, which a picture of odd size in the
    middle of a batch is not. tensors: those of one entry, and what its parts hand on.
    """

    def __init__(self, engines: Engines, device: Device, graph: Graph, batch: Mapping[str, DeviceTensor], profile: int):
        self._count = min(tensor.shape[0] for tensor in batch.values())
        single = {name: device.tensor((1, *one.shape[1:]), one.dtype.name) for name, one in batch.items()}
        self._bound = engines.bind(graph.name, single, profile)
        self._inputs = [(single[one.name], batch[one.name]) for one in graph.inputs]
        self._outputs = [(single[one.name], batch[one.name]) for one in graph.outputs]

    @property
    def tensors(self) -> dict[str, DeviceTensor]:
        """What a launch reads and writes, by name."""
        return self._bound.tensors

    def __call__(self) -> None:
        """Launch; the work may still run when this returns. Raises ExecutionFailed, also after close()."""
        for index in range(self._count):
            for single, batch in self._inputs:
                single.copy_row(0, batch, index)
            self._bound()
            for single, batch in self._outputs:
                batch.copy_row(index, single, 0)


def bound_graph(
    engines: Engines, device: Device, graph: Graph, tensors: Mapping[str, DeviceTensor], profile: int
) -> Bound | OneByOne:
    """A launch of a graph's engines on these tensors, by wire. Raises ExecutionFailed."""
    if graph.one_by_one and any(tensor.shape[0] > 1 for tensor in tensors.values()):
        return OneByOne(engines, device, graph, tensors, profile)
    return engines.bind(graph.name, tensors, profile)
