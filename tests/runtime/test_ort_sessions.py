from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.binding import Binding, Graph
from runtime.backends.ort_sessions import Sessions, parts_of, physical_cores


def graph(**first_axes: str | int) -> Graph:
    bindings = tuple(
        Binding(name=name, dtype="float32", shape=(axis, 4), lifetime="transient") for name, axis in first_axes.items()
    )
    return Graph(name="g", stage="loop", file="g.onnx", precision="fp32", inputs=bindings[:-1], outputs=bindings[-1:])


@pytest.mark.parametrize(
    ("rows", "threads", "parts"),
    [(2, 2, 2), (2, 1, 1), (1, 8, 1), (3, 2, 1), (4, 2, 2), (2, 16, 2), (6, 4, 2), (8, 8, 8)],
)
def test_parts_share_rows_and_threads_equally(rows: int, threads: int, parts: int) -> None:
    assert parts_of(graph(x="rows", y="rows"), {"rows": rows, "samples": 1}, threads) == parts


def test_graphs_that_mix_axes_are_not_cut() -> None:
    dims = {"rows": 2, "samples": 2, "height": 2}
    assert parts_of(graph(x="rows", y="samples"), dims, 2) == 1
    assert parts_of(graph(x="rows", table=4, y="rows"), dims, 2) == 1
    assert parts_of(graph(x="height", y="height"), dims, 2) == 1


def test_a_session_is_made_once_for_each_share_of_the_threads() -> None:
    opened: list[tuple[str, int]] = []
    sessions = Sessions(
        {"g": Path("g.onnx")}, 4, lambda path, threads: opened.append((path.name, threads)) or len(opened)
    )
    g = graph(x="rows", y="rows")
    assert [sessions.get(g, 2), sessions.get(g, 2), sessions.get(g, 1)] == [1, 1, 2]
    assert opened == [("g.onnx", 2), ("g.onnx", 4)]


def test_physical_cores() -> None:
    assert physical_cores() >= 1


def test_parts_compute_what_the_whole_does(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    from runtime.pipeline import Pipeline
    from runtime.request import Request

    request = Request(prompt="a cat", height=128, width=128, num_inference_steps=2, num_images=2, guidance_scale=5.0)
    pictures = []
    for threads in (1, 2, 4):
        with Pipeline.load(tiny_bundle, "onnxruntime", threads=threads) as pipeline:
            pictures.append(pipeline.generate(request).arrays.astype(np.int16))
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() <= 1  # rounding: convolutions add up in another order
