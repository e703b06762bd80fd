"""Weights move between an ONNX file and the file beside it, and stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import weights
from export.weights import consolidate, read_graph, save_graph

SIZES = {"a": 5000, "b": 3, "c": 70_001, "d": 1024}


def model() -> onnx.ModelProto:
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in SIZES.items()}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors.append(helper.make_tensor("e", TensorProto.FLOAT, [2000], list(range(2000))))  # not as raw bytes
    nodes = [helper.make_node("ReduceSum", [tensor.name], [f"sum_{tensor.name}"], keepdims=0) for tensor in tensors]
    nodes.append(helper.make_node("Sum", [node.output[0] for node in nodes] + ["x"], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def values(path: Path) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of more than 10 kB leave the file."""
    monkeypatch.setattr(weights, "INLINE_BYTES", 10_000)


def test_few_weights_stay_in_the_file(tmp_path: Path) -> None:
    save_graph(model(), tmp_path / "g.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]
    assert values(tmp_path / "g.onnx")["c"] == np.arange(SIZES["c"], dtype=np.float32).tobytes()


@pytest.mark.usefixtures("limit")
def test_many_weights_lie_in_one_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    save_graph(model(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]
    assert path.stat().st_size < 20_000
    onnx.checker.check_model(str(path), full_check=True)
    stored = {t.name: {e.key: e.value for e in t.external_data} for t in read_graph(path).graph.initializer}
    assert {name for name, entries in stored.items() if entries} == {"a", "c", "e"}  # the small ones are for cutting
    assert all(int(e["offset"]) % 4096 == 0 and e["location"] == "g.onnx.data" for e in stored.values() if e)
    assert values(path)["e"] == np.arange(2000, dtype=np.float32).tobytes()


@pytest.mark.usefixtures("limit")
def test_a_part_of_a_graph_takes_its_weights_along_and_back_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over the file that its weights still lie in, as the rest of a hoisted graph is."""
    path = tmp_path / "g.onnx"
    save_graph(model(), path)
    expected = values(path)
    part = read_graph(path)
    del part.graph.initializer[0]
    save_graph(part, path)
    assert values(path) == {name: raw for name, raw in expected.items() if name != "a"}
    assert path.with_name("g.onnx.data").stat().st_size < 300_000
    monkeypatch.setattr(weights, "INLINE_BYTES", 1 << 20)
    save_graph(read_graph(path), path)
    assert [file.name for file in tmp_path.iterdir()] == ["g.onnx"]
    assert values(path) == {name: raw for name, raw in expected.items() if name != "a"}


@pytest.mark.usefixtures("limit")
def test_scattered_weights_become_one_file(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(list(tmp_path.iterdir())) > 4
    expected = values(path)
    consolidate(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]
    assert values(path) == expected


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("damage", ["elsewhere", "short"])
def test_weights_that_are_not_whole_beside_the_graph_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "inner" / "g.onnx"
    path.parent.mkdir()
    save_graph(model(), path)
    found, data = read_graph(path), path.with_name("g.onnx.data")
    if damage == "short":
        data.write_bytes(data.read_bytes()[:5000])
    else:
        data.rename(tmp_path / data.name)
        for entry in (entry for tensor in found.graph.initializer for entry in tensor.external_data):
            entry.value = f"../{data.name}" if entry.key == "location" else entry.value
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"not beside the graph|bytes are there"):
        save_graph(found, path)
    assert path.read_bytes() == before
