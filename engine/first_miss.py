"""Which part of a chain is the first to go wrong, told by ONNX Runtime on the CPU, where that is installed.

Its CPU provider computes an fp16 graph in fp32, which is what a plan should come near to. Judges nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.binding import Array, Graph
from engine.compare import difference


def first_miss(
    folder: Path, graph: Graph, count: int, feeds: Mapping[str, Array], made: Callable[[str], Array], limit: float
) -> str:
    """In words, the first of `count` parts that makes something further off than limit; empty where nothing tells.

    folder: the bundle's. feeds: the graph's inputs. made: what the plans made of a tensor that crosses between parts.
    """
    try:
        return _first_miss(folder, graph, count, feeds, made, limit)
    except Exception as error:  # noqa: BLE001  # only an addition to a verdict that stands without it
        return f"which part misses could not be told ({type(error).__name__}: {error})"


def _first_miss(
    folder: Path, graph: Graph, count: int, feeds: Mapping[str, Array], made: Callable[[str], Array], limit: float
) -> str:
    try:
        ort = importlib.import_module("onnxruntime")
        from onnx.external_data_helper import load_external_data_for_model

        from engine.cut import part_of
        from engine.rewrite import read_model
    except ImportError:
        return ""
    path = folder / graph.file
    model = read_model(path.read_bytes(), path.parent)
    values: dict[str, Array] = dict(feeds)
    for index in range(1, count + 1):
        part = part_of(model, (index, count))
        load_external_data_for_model(part, str(path.parent))
        session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in part.graph.output]
        inputs = {value.name: values[value.name] for value in part.graph.input}
        values |= dict(zip(names, session.run(names, inputs), strict=True))
        for name in names:
            error, not_finite = difference(made(name), values[name])
            if not_finite or error > limit:
                found = f"{not_finite} values NaN or infinite" if not_finite else f"error {error:.2e}"
                return f"the first of {count} parts to miss is {index}: '{name}', {found}"
    return f"its {count} parts compute what ONNX Runtime does from the same inputs"
