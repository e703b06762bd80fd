"""Whether the parts of a graph fit together, by what plan.json records that each reads and makes.

Parts of one graph that were cut at different places do not, though every identity is right. Does not cut: `cut_wires`
asks engine/cut.py, which needs onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from engine.binding import Graph
from engine.plan import WHOLE, Part, Wires


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def misfit(graph: Graph, chain: Sequence[Wires]) -> str | None:
    """Why the parts, in order, do not make a graph's outputs of its inputs, each once; None where they do."""
    made = {binding.name for binding in graph.inputs}
    for index, wires in enumerate(chain, 1):
        if lacking := sorted(set(wires.inputs) - made):
            return f"part {index} of {len(chain)} reads {lacking[0]!r}, which no part before it makes"
        if again := sorted(made & set(wires.outputs)):
            return f"part {index} of {len(chain)} makes {again[0]!r} again"
        made |= set(wires.outputs)
    if lacking := sorted({binding.name for binding in graph.outputs} - made):
        return f"no part makes {lacking[0]!r}"
    return None


def cut_wires(folder: Path, graph: Graph, parts: Sequence[Part]) -> list[Wires]:
    """What these parts of a bundle's graph read and make as it is cut now. Raises OSError, ImportError or ValueError.

    ValueError: for a file that does not parse, and for a graph that cannot be cut so.
    """
    if list(parts) == [WHOLE]:
        return [named_wires(graph.inputs, graph.outputs)]
    from engine.cut import Layout
    from engine.rewrite import read_model

    path = folder / graph.file
    layout = Layout(read_model(path.read_bytes(), path.parent))
    cut = (layout.part(part).graph for part in parts)
    return [named_wires(one.input, one.output) for one in cut]


def named_wires(inputs: Iterable[_Named], outputs: Iterable[_Named]) -> Wires:
    """The names of what a part reads and makes, in order."""
    return Wires(inputs=tuple(one.name for one in inputs), outputs=tuple(one.name for one in outputs))
