"""Where a graph's weights lie: in its ONNX file, or, where they are many, in one file beside it, `<file>.data`.

So a build maps or reads them once, in place of parsing them and keeping both. Nothing here holds all weights twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

from engine.binding import Array
from engine.rewrite import external_bytes
from engine.shapes import size_bytes

Reader = Callable[[TensorProto], Array | None]
"""The values of an initializer that lie outside of its model, row by row; None of one that has its own."""

INLINE_BYTES = 64 << 20
"""Weights of a graph that are more than this leave its ONNX file."""
SMALL_BYTES = 4096
"""A tensor up to this size stays in the ONNX file: shapes and scales, which cutting and rewriting read."""
ALIGNMENT = 4096


def read_graph(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; weights that lie in other files stay there."""
    model = onnx.ModelProto()
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        model.ParseFromString(view)  # mapped, so the bytes are not in memory beside what is parsed from them
    return model


def save_graph(model: onnx.ModelProto, path: Path, read: Reader | None = None) -> None:
    """Write a graph, whose external weights lie beside path, and move its weights to where they belong.

    read: gives the values of those that are neither in the model nor beside it. The model is left without the weights
    that went to `<path>.data`.
    """
    tensors, data = list(model.graph.initializer), path.with_name(f"{path.name}.data")
    if sum(map(size_bytes, tensors)) <= INLINE_BYTES:
        for tensor in tensors:
            _set_inline(tensor, path.parent, read)
        path.write_bytes(model.SerializeToString())
        data.unlink(missing_ok=True)
        return
    partial = path.with_name(f"{path.name}.partial")  # the tensors may lie in `data` itself
    with partial.open("wb") as stream:
        for tensor in tensors:
            if size_bytes(tensor) <= SMALL_BYTES:
                _set_inline(tensor, path.parent, read)
                continue
            raw = raw_bytes(tensor, path.parent, read)
            stream.seek(-stream.tell() % ALIGNMENT, 1)
            begin = stream.tell()
            stream.write(raw)
            outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"")
            external_data_helper.set_external_data(outside, data.name, begin, memoryview(raw).nbytes)
            outside.ClearField("raw_data")
            tensor.CopyFrom(outside)
    partial.replace(data)
    path.write_bytes(model.SerializeToString())


def consolidate(path: Path) -> None:
    """Bring the weights of a graph that was just exported to where they belong; torch scatters what exceeds 2 GB."""
    model = read_graph(path)
    scattered = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    save_graph(model, path)
    for name in scattered - {f"{path.name}.data"}:
        (path.parent / name).unlink()


def raw_bytes(tensor: TensorProto, folder: Path, read: Reader | None = None) -> bytes | memoryview:
    """A tensor's bytes, from wherever they are; folder: where those lie that the model does not hold."""
    if (array := None if read is None else read(tensor)) is not None:
        return array.data
    if external_data_helper.uses_external_data(tensor):
        return external_bytes(tensor, folder)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return onnx.numpy_helper.to_array(tensor).tobytes()


def _set_inline(tensor: TensorProto, folder: Path, read: Reader | None = None) -> None:
    given = None if read is None else read(tensor)
    if given is not None:
        tensor.raw_data = given.tobytes()
    elif external_data_helper.uses_external_data(tensor):
        tensor.raw_data = external_bytes(tensor, folder)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out the weights that no node reads."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
