"""Where a graph's weights lie: in its ONNX file, or, where they are many, in one file beside it, `<file>.data`.

So a build maps or reads them once, in place of parsing them and keeping both. Nothing here holds all weights twice.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

from engine.rewrite import external_bytes
from engine.shapes import size_bytes

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


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph, whose external weights lie beside path, and move its weights to where they belong.

    The model is left without the weights that went to `<path>.data`.
    """
    tensors, data = list(model.graph.initializer), path.with_name(f"{path.name}.data")
    if sum(map(size_bytes, tensors)) <= INLINE_BYTES:
        for tensor in tensors:
            _set_inline(tensor, path.parent)
        path.write_bytes(model.SerializeToString())
        data.unlink(missing_ok=True)
        return
    partial = path.with_name(f"{path.name}.partial")  # the tensors may lie in `data` itself
    with partial.open("wb") as stream:
        for tensor in tensors:
            if size_bytes(tensor) <= SMALL_BYTES:
                _set_inline(tensor, path.parent)
                continue
            raw = raw_bytes(tensor, path.parent)
            stream.seek(-stream.tell() % ALIGNMENT, 1)
            begin = stream.tell()
            stream.write(raw)
            outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"")
            external_data_helper.set_external_data(outside, data.name, begin, len(raw))
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


def raw_bytes(tensor: TensorProto, folder: Path) -> bytes:
    """A tensor's bytes, from wherever they are; folder: where those lie that the model does not hold."""
    if external_data_helper.uses_external_data(tensor):
        return external_bytes(tensor, folder)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return onnx.numpy_helper.to_array(tensor).tobytes()


def _set_inline(tensor: TensorProto, folder: Path) -> None:
    if external_data_helper.uses_external_data(tensor):
        tensor.raw_data = raw_bytes(tensor, folder)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
