from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.binding import Binding, Graph
from engine.errors import BundleDamaged
from runtime.backends.ort_sessions import Sessions, parts_of, physical_cores


def graph(**first_axes: str | int) -> Graph:
    bindings = tuple(
        Binding(name=name, dtype="float32", shape=(axis, 4), lifetime="transient") for name, axis in first_axes.items()
    )
    return Graph(name="g", stage="loop", file="g.onnx", precision="fp32", inputs=bindings[:-1], outputs=bindings[-1:])


@pytest.mark.parametrize(
    ("rows", "threads", "parts"),
    [(2, 2, 2), (2, 1, 1), (1, 8, 1), (3, 2, 1), (4, 2, 2), (2, 16, 2), (6, 4, 2), (8, 8, 2)],
)
def test_an_even_batch_is_halved_where_there_are_threads(rows: int, threads: int, parts: int) -> None:
    assert parts_of(graph(x="rows", y="rows"), {"rows": rows, "samples": 1}, threads) == parts


def test_graphs_that_mix_axes_are_not_cut() -> None:
    dims = {"rows": 2, "samples": 2, "height": 2}
    assert parts_of(graph(x="rows", y="samples"), dims, 2) == 1
    assert parts_of(graph(x="rows", table=4, y="rows"), dims, 2) == 1
    assert parts_of(graph(x="height", y="height"), dims, 2) == 1


def test_a_session_is_made_once_for_each_number_of_parts() -> None:
    opened: list[tuple[str, int]] = []
    sessions = Sessions(4, lambda graph, threads: opened.append((graph.name, threads)) or len(opened))
    g = graph(x="rows", y="rows")
    assert [sessions.get(g, 2), sessions.get(g, 2), sessions.get(g, 1)] == [1, 1, 2]
    assert opened == [("g", 3), ("g", 4)]  # two callers and three threads' pool of two: four at work


def test_a_graph_that_changed_after_load_is_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from runtime.pipeline import Pipeline
    from runtime.request import Request

    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    with Pipeline.load(folder, "onnxruntime", threads=2) as pipeline:
        path = folder / "graphs" / "fp32" / "denoiser.onnx"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
        with pytest.raises(BundleDamaged):  # one row: another session than a guided picture's two
            pipeline.generate(Request(prompt="a cat", height=128, width=128, num_inference_steps=1, guidance_scale=1))


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
