"""Which parts make a graph, by what they read and make."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.bundle import load_bundle
from engine.chain import cut_wires, misfit
from engine.plan import WHOLE, Wires
from tests.toy_bundle import GRAPHS, write_bundle

GRAPH = GRAPHS[1]
INPUTS, OUTPUTS = (tuple(one.name for one in side) for side in (GRAPH.inputs, GRAPH.outputs))


def chain(*crossing: tuple[str, ...]) -> list[Wires]:
    """Parts that hand on these tensors, each to the next."""
    ends = [INPUTS, *crossing, OUTPUTS]
    return [Wires(inputs=reads, outputs=makes) for reads, makes in pairwise(ends)]


def test_what_fits():
    assert misfit(GRAPH, chain()) is None
    assert misfit(GRAPH, chain(("a", "b"), ("c",))) is None
    first, second = chain(("a",))
    far = Wires(inputs=("a", *INPUTS), outputs=("b",))
    assert misfit(GRAPH, [first, far, second]) is None


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([chain(("a",))[0], chain(("b",))[1]], "part 2 of 2 reads 'b', which no part before it makes"),
        ([*reversed(chain(("a",)))], "part 1 of 2 reads 'a', which no part before it makes"),
        ([chain(("a",))[0], *chain(("a",))], "part 2 of 3 makes 'a' again"),
        (chain(("a",))[:1], f"no part makes '{min(OUTPUTS)}'"),
        ([], f"no part makes '{min(OUTPUTS)}'"),
    ],
)
def test_what_does_not(parts, words):
    assert misfit(GRAPH, parts) == words


def test_a_cut_fits_itself_and_no_other(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    graph = load_bundle(folder).graphs("fp16")[1]
    assert cut_wires(folder, graph, [WHOLE]) == [Wires(inputs=INPUTS, outputs=OUTPUTS)]
    two, three = (cut_wires(folder, graph, [(k, n) for k in range(1, n + 1)]) for n in (2, 3))
    assert misfit(graph, two) is None
    assert misfit(graph, three) is None
    assert misfit(graph, [three[0], two[1]]) is not None
