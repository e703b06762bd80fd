"""A bundle's graphs with each attention as one operation of ONNX Runtime, for comparing with what export writes.

Export writes an attention as two products and a softmax, from which TensorRT makes one operation; ONNX Runtime does
not. Here each becomes its MultiHeadAttention. Only the benchmark uses it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from engine.binding import Dims, Precision
from engine.bundle import FILE, Bundle, encode_bundle, sealed
from engine.schema import FileEntry
from engine.shapes import tensor_types

DOMAIN = "com.microsoft"


def fused_copy(folder: Path, bundle: Bundle, precision: Precision, dims: Dims) -> tuple[Path, int]:
    """A copy of a bundle in a temporary folder, its files shared, with fused attentions in one variant; how many.

    The folder goes with the process. dims: sizes at which the heads are counted.
    """
    copy = Path(tempfile.mkdtemp(prefix="zturbo-fused-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name in bundle.files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        _same_file(folder / name, copy / name)
    source = msgspec.structs.replace(bundle.source, path=str((folder / bundle.source.path).resolve()))
    files, count = dict(bundle.files), 0
    for graph in bundle.graphs(precision):
        model = onnx.load(str(folder / graph.file), load_external_data=False)
        shapes = {binding.name: binding.resolve(dims) for binding in graph.inputs}
        found = fuse(model, shapes)
        if found:
            raw = model.SerializeToString()
            (copy / graph.file).unlink()
            (copy / graph.file).write_bytes(raw)
            files[graph.file] = FileEntry(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        count += found
    (copy / FILE).write_bytes(encode_bundle(sealed(msgspec.structs.replace(bundle, source=source, files=files))))
    return copy, count


def _same_file(path: Path, other: Path) -> None:
    """A second name of a file, or a copy where the file system has none; a link out of a bundle is refused."""
    try:
        os.link(path.resolve(), other)
    except OSError:
        shutil.copyfile(path, other)


def fuse(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Replace every MatMul, Softmax, MatMul on (batch, heads, length, width) in place; returns how many there were.

    shapes: of the graph's inputs. The scale is in the first product's inputs already.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    made = {node.output[0]: node for node in model.graph.node}
    outputs = {value.name for value in model.graph.output}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    types: dict[str, Any] = {}
    for soft in [node for node in model.graph.node if node.op_type == "Softmax"]:
        first, last = made.get(soft.input[0]), readers.get(soft.output[0], [])
        if not _is_attention(first, soft, last, readers) or {soft.input[0], soft.output[0]} & outputs:
            continue
        types = types or tensor_types(model, shapes)
        assert first is not None
        if len(types[first.input[0]][1]) == 4:
            replaced[last[0].output[0]] = _attention(model, first, last[0], types[first.input[0]][1])
            gone |= {first.output[0], soft.output[0]}
    _rebuild(model, replaced, gone)
    return len(replaced)


def _is_attention(first: Any, soft: Any, last: list[Any], readers: Mapping[str, list[Any]]) -> bool:
    if first is None or first.op_type != "MatMul" or len(readers[first.output[0]]) != 1:
        return False
    return len(last) == 1 and last[0].op_type == "MatMul" and last[0].input[0] == soft.output[0]


def _attention(model: Any, first: Any, last: Any, query: tuple[int, ...]) -> list[Any]:
    """The nodes in place of one attention; query: its (batch, heads, length, width)."""
    heads, width, stem = query[1], query[3], f"{last.output[0]}/fused"
    for name, shape in (("flat", [0, 0, heads * width]), ("apart", [0, 0, heads, width])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{stem}/{name}"))
    names = {name: f"{stem}/{name}" for name in ("turned", "query", "key", "flat_out", "heads_out")}
    return [
        helper.make_node("Transpose", [first.input[0]], [names["turned"]], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [names["turned"], f"{stem}/flat"], [names["query"]]),
        helper.make_node("Transpose", [first.input[1]], [names["key"]], perm=[0, 1, 3, 2]),
        helper.make_node(
            "MultiHeadAttention", [names["query"], names["key"], last.input[1]], [names["flat_out"]],
            domain=DOMAIN, num_heads=heads, scale=1.0,
        ),
        helper.make_node("Reshape", [names["flat_out"], f"{stem}/apart"], [names["heads_out"]]),
        helper.make_node("Transpose", [names["heads_out"]], [last.output[0]], perm=[0, 2, 1, 3]),
    ]  # fmt: skip


def _rebuild(model: Any, replaced: Mapping[str, list[Any]], gone: set[str]) -> None:
    """The graph's nodes with the new ones in place of the last product of each attention."""
    if not replaced:
        return
    nodes = [
        one for node in model.graph.node if node.output[0] not in gone
        for one in replaced.get(node.output[0], [node])
    ]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
