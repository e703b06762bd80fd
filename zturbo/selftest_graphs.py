"""The self-test's eight small graphs, by onnx alone: one of each thing that a TensorRT has got wrong somewhere.

An embedding with int32 indices, LayerNormalization, GroupNorm as TorchScript writes it, attention over a prologue's K
and V, an fp32 island sin(999·f), the solver's gathers, a carried pair, and pixels in uint8, coming in and going out.
Imports onnx; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from engine.binding import Axis, Binding, DType, Graph, Lifetime, Precision, Stage
from zturbo.selftest_nodes import WIDTH, Nodes

COLUMNS = ("a", "d", "c", "j", "s", "t", "u", "v")
ROWS, TOKENS, VOCABULARY, HEADS = 16, 16, 258, 2
CHANNELS, FACTOR = 4, 8
LATENT: tuple[Axis, ...] = (CHANNELS, "height/8", "width/8")
WIRES: dict[str, tuple[DType | Literal["half"], tuple[Axis, ...], Lifetime]] = {
    "input_ids": ("int32", ("rows", "tokens"), "per_row"),
    "token_weights": ("float32", ("rows", "tokens"), "per_row"),
    "clip_skip": ("int32", ("rows",), "per_row"),
    "encoder_hidden_states": ("half", ("rows", "tokens", WIDTH), "per_row"),
    "prologue_00": ("half", ("rows", "tokens", WIDTH), "per_row"),
    "prologue_01": ("half", ("rows", "tokens", WIDTH), "per_row"),
    "table": ("float32", ("samples", ROWS, len(COLUMNS)), "per_sample"),
    "noise": ("float32", ("samples", "draws", *LATENT), "per_sample"),
    "guidance_scale": ("float32", ("samples",), "per_sample"),
    "cond_row": ("int32", ("samples",), "per_sample"),
    "uncond_row": ("int32", ("samples",), "per_sample"),
    "sample_of_row": ("int32", ("rows",), "per_sample"),
    "image": ("uint8", ("samples", "height", "width", 3), "per_sample"),
    "image_noise": ("float32", ("samples", *LATENT), "per_sample"),
    "mask": ("float32", ("samples", 1, *LATENT[1:]), "per_sample"),
    "image_latents": ("float32", ("samples", *LATENT), "per_sample"),
    "latents": ("float32", ("samples", *LATENT), "carried"),
    "next_latents": ("float32", ("samples", *LATENT), "carried"),
    "row": ("int32", ("samples",), "carried"),
    "next_row": ("int32", ("samples",), "carried"),
    "sample": ("half", ("rows", *LATENT), "transient"),
    "timestep": ("float32", ("rows",), "transient"),
    "noise_pred": ("half", ("rows", *LATENT), "transient"),
    "images": ("uint8", ("samples", "height", "width", 3), "transient"),
    "preview": ("uint8", ("samples", *LATENT[1:], 3), "transient"),
}
"""dtype, shape and lifetime; `half` is the variant's own."""
_FROM_IMAGES = "image_latents mask"
SIGNATURES: dict[str, tuple[Stage, str, str]] = {
    "conditioning": ("once", "input_ids token_weights clip_skip", "encoder_hidden_states"),
    "prologue": ("once", "encoder_hidden_states", "prologue_00 prologue_01"),
    "encoder": ("once", "image image_noise", "image_latents"),
    "start": ("once", "table noise image_latents sample_of_row", "latents row sample timestep"),
    "denoiser": ("loop", "sample timestep prologue_00 prologue_01", "noise_pred"),
    "solver": (
        "loop",
        f"noise_pred latents row table noise guidance_scale cond_row uncond_row sample_of_row {_FROM_IMAGES}",
        "next_latents next_row sample timestep",
    ),
    "decoder": ("final", "latents", "images"),
    "preview": ("preview", "latents", "preview"),
}  # fmt: skip


def graph_entry(name: str, precision: Precision) -> Graph:
    """What bundle.json says of a graph."""
    stage, inputs, outputs = SIGNATURES[name]
    return Graph(
        name=name, stage=stage, file=f"graphs/{precision}/{name}.onnx",
        precision="fp32" if name in ("start", "solver", "preview") else precision,
        inputs=tuple(_binding(wire, precision) for wire in inputs.split()),
        outputs=tuple(_binding(wire, precision) for wire in outputs.split()),
        carried={wire.removeprefix("next_"): wire for wire in outputs.split() if wire.startswith("next_")},
        hoisted_from="denoiser" if name == "prologue" else "",
        only_with=("image",) if name == "encoder" else (),
    )  # fmt: skip


def graph_model(name: str, precision: Precision) -> onnx.ModelProto:
    """The graph itself."""
    nodes = Nodes(name, precision)
    _BODIES[name](nodes)
    entry = graph_entry(name, precision)
    inputs, outputs = ([_value(binding) for binding in bindings] for bindings in (entry.inputs, entry.outputs))
    graph = helper.make_graph(nodes.nodes, name, inputs, outputs, nodes.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _conditioning(n: Nodes) -> None:
    """Chunk by chunk; clip_skip 1 leaves the projection out, and the weights are multiplied in fp32."""
    size = n.add("chunks", "Shape", "input_ids")
    ids = n.add("chunks", "Reshape", "input_ids", n.constant([-1, TOKENS], np.int64))
    embedded = n.layer_norm("norm", n.add("embedding", "Gather", n.weight(VOCABULARY, WIDTH), ids, axis=0))
    projected = n.add("projection", "MatMul", embedded, n.weight(WIDTH, WIDTH))
    column = n.add("skip", "Reshape", "clip_skip", n.constant([-1, 1], np.int64))
    each = n.add("skip", "Reshape", n.add("skip", "Expand", column, size), n.constant([-1, TOKENS, 1], np.int64))
    chosen = n.add("skip", "Where", n.add("skip", "Equal", each, n.constant(1, np.int32)), embedded, projected)
    weights = n.add("weights", "Reshape", "token_weights", n.constant([-1, TOKENS, 1], np.int64))
    weighted = n.add("weights", "Mul", n.add("weights", "Cast", chosen, to=TensorProto.FLOAT), weights)
    whole = n.add("chunks", "Concat", size, n.constant([WIDTH], np.int64), axis=0)
    n.add("chunks", "Reshape", n.add("weights", "Cast", weighted, to=n.half), whole, out="encoder_hidden_states")


def _prologue(n: Nodes) -> None:
    n.add("to_k", "MatMul", "encoder_hidden_states", n.weight(WIDTH, WIDTH), out="prologue_00")
    n.add("to_v", "MatMul", "encoder_hidden_states", n.weight(WIDTH, WIDTH), out="prologue_01")


def _denoiser(n: Nodes) -> None:
    x = n.add("time", "Add", n.conv("conv_in", "sample", (CHANNELS, WIDTH)), _time(n))
    x = n.conv("resnet", n.silu("resnet", n.group_norm("resnet", x)), (WIDTH, WIDTH))
    x = _attention(n, x)
    n.conv("conv_out", n.silu("norm_out", n.group_norm("norm_out", x)), (WIDTH, CHANNELS), out="noise_pred")


def _time(n: Nodes) -> str:
    """The timestep's sines: fp32 until the cast, for sin(999) in fp16 is another number."""
    column = n.add("time", "Reshape", "timestep", n.constant([-1, 1], np.int64))
    angle = n.add("time", "Mul", column, n.constant(np.geomspace(1, 1e-3, WIDTH // 2)[None]))
    waves = n.add("time", "Concat", n.add("time", "Sin", angle), n.add("time", "Cos", angle), axis=1)
    features = n.add("time", "MatMul", n.add("time", "Cast", waves, to=n.half), n.weight(WIDTH, WIDTH))
    return n.add("time", "Reshape", features, n.constant([-1, WIDTH, 1, 1], np.int64))


def _attention(n: Nodes, x: str) -> str:
    """Of the pixels over the tokens, with the residual."""
    heads = n.constant([0, -1, HEADS, WIDTH // HEADS], np.int64)

    def split(rows: str, perm: Sequence[int]) -> str:
        return n.add("attention", "Transpose", n.add("attention", "Reshape", rows, heads), perm=list(perm))

    flat = n.add("attention", "Reshape", x, n.constant([0, WIDTH, -1], np.int64))
    pixels = n.add("attention", "Transpose", flat, perm=[0, 2, 1])
    query = n.add("attention", "MatMul", n.layer_norm("attention", pixels), n.weight(WIDTH, WIDTH))
    scaled = n.add("attention", "Mul", split(query, (0, 2, 1, 3)), n.half_constant((HEADS / WIDTH) ** 0.5))
    scores = n.add("attention", "MatMul", scaled, split("prologue_00", (0, 2, 3, 1)))
    found = n.add(
        "attention", "MatMul", n.add("attention", "Softmax", scores, axis=-1), split("prologue_01", (0, 2, 1, 3))
    )
    merged = n.add("attention", "Transpose", found, perm=[0, 2, 1, 3])
    joined = n.add("attention", "Reshape", merged, n.constant([0, -1, WIDTH], np.int64))
    out = n.add("attention", "Add", pixels, n.add("attention", "MatMul", joined, n.weight(WIDTH, WIDTH)))
    back = n.add("attention", "Transpose", out, perm=[0, 2, 1])
    return n.add("attention", "Reshape", back, n.add("attention", "Shape", x))


def _encoder(n: Nodes) -> None:
    """One convolution of pixels to latents, after what only an encoder has: uint8 that comes in, and noise."""
    x = n.add("pixels", "Cast", "image", to=TensorProto.FLOAT)
    x = n.add("pixels", "Sub", n.add("pixels", "Mul", x, n.constant(2 / 255)), n.constant(1))
    x = n.add("pixels", "Cast", n.add("pixels", "Transpose", x, perm=[0, 3, 1, 2]), to=n.half)
    x = n.add("conv_in", "Conv", x, n.weight(CHANNELS, 3, FACTOR, FACTOR), strides=[FACTOR, FACTOR])
    drawn = n.add("draw", "Mul", "image_noise", n.constant(0.1))
    n.add("draw", "Add", n.add("draw", "Cast", x, to=TensorProto.FLOAT), drawn, out="image_latents")


def _preview(n: Nodes) -> None:
    """A pixel for each place: a linear map of its channels, by a sum of products, as export writes it."""
    x = n.add("pixels", "Transpose", "latents", perm=[0, 2, 3, 1])
    each = n.add("pixels", "Unsqueeze", x, n.constant([4], np.int64))
    weights = n.constant(np.linspace(-4, 4, 3 * CHANNELS).reshape(CHANNELS, 3))
    products = n.add("pixels", "Mul", each, weights)
    x = n.add("pixels", "ReduceSum", products, n.constant([3], np.int64), keepdims=0)
    x = n.add("pixels", "Clip", n.add("pixels", "Add", x, n.constant(128)), n.constant(0), n.constant(255))
    n.add("pixels", "Cast", n.add("pixels", "Round", x), to=TensorProto.UINT8, out="preview")


def _start(n: Nodes) -> None:
    """Table row 0: latents = a·image_latents + c·noise[j], and the first model input."""
    values = n.add("row", "Gather", "table", n.constant(0, np.int32), axis=1)
    fresh = n.add("row", "Mul", _column(n, values, "c"), _draw(n, values))
    n.add("row", "Add", _part(n, values, "a", "image_latents"), fresh, out="latents")
    nothing = n.add("row", "Mul", _flat_column(n, values, "c"), n.constant(0))
    n.add("row", "Add", n.add("row", "Cast", nothing, to=TensorProto.INT32), n.constant(1, np.int32), out="row")
    _model_input(n, values, "latents")


def _solver(n: Nodes) -> None:
    """One step, x' = a·x + d·(u + g·(c − u)) + c·noise[j] with each sample's own table row."""
    cond, uncond = (
        n.add("guidance", "Cast", n.add("guidance", "Gather", "noise_pred", rows, axis=0), to=TensorProto.FLOAT)
        for rows in ("cond_row", "uncond_row")
    )
    scale = n.add("guidance", "Reshape", "guidance_scale", n.constant([-1, 1, 1, 1], np.int64))
    more = n.add("guidance", "Mul", scale, n.add("guidance", "Sub", cond, uncond))
    e = n.add("guidance", "Add", uncond, more)
    index = n.add("row", "Reshape", "row", n.constant([-1, 1, 1], np.int64))
    wide = n.add("row", "Add", index, n.constant(np.zeros((1, 1, len(COLUMNS))), np.int32))
    gathered = n.add("row", "GatherElements", "table", wide, axis=1)
    values = n.add("row", "Reshape", gathered, n.constant([-1, len(COLUMNS)], np.int64))
    kept = n.add("update", "Mul", _column(n, values, "a"), "latents")
    moved = n.add("update", "Add", kept, n.add("update", "Mul", _column(n, values, "d"), e))
    fresh = n.add("update", "Mul", _column(n, values, "c"), _draw(n, values))
    painted = n.add("update", "Add", moved, fresh)
    first = n.add("mask", "Gather", "noise", n.constant(0, np.int32), axis=1)
    known = n.add("mask", "Add", _part(n, values, "u", "image_latents"), _part(n, values, "v", first))
    kept = n.add("mask", "Mul", n.add("mask", "Sub", n.constant(1), "mask"), known)
    mixed = n.add("mask", "Add", n.add("mask", "Mul", "mask", painted), kept)
    everywhere = n.add("mask", "Equal", "mask", n.constant(1))
    n.add("mask", "Where", everywhere, painted, mixed, out="next_latents")
    after = n.add("row", "Add", "row", n.constant(1, np.int32))
    n.add("row", "Min", after, n.constant(ROWS - 1, np.int32), out="next_row")
    _model_input(n, values, "next_latents")


def _flat_column(n: Nodes, values: str, column: str) -> str:
    """(samples,) of (samples, columns)."""
    return n.add("row", "Gather", values, n.constant(COLUMNS.index(column), np.int32), axis=1)


def _column(n: Nodes, values: str, column: str) -> str:
    return n.add("row", "Reshape", _flat_column(n, values, column), n.constant([-1, 1, 1, 1], np.int64))


def _part(n: Nodes, values: str, column: str, x: str) -> str:
    """A column times x; 0 where the column is, whatever x is."""
    factor = _column(n, values, column)
    none = n.add("part", "Equal", factor, n.constant(0))
    return n.add("part", "Where", none, n.constant(0), n.add("part", "Mul", factor, x))


def _draw(n: Nodes, values: str) -> str:
    """The draw of noise that each sample's row names."""
    index = n.add("draw", "Cast", _flat_column(n, values, "j"), to=TensorProto.INT32)
    index = n.add("draw", "Reshape", index, n.constant([-1, 1, 1, 1, 1], np.int64))
    ends = n.constant([2], np.int64), n.constant([5], np.int64)
    size = n.add("draw", "Slice", n.add("draw", "Shape", "noise"), *ends)
    wide = n.add("draw", "Expand", index, n.add("draw", "Concat", n.constant([1, 1], np.int64), size, axis=0))
    one = n.add("draw", "GatherElements", "noise", wide, axis=1)
    return n.add("draw", "Squeeze", one, n.constant([1], np.int64))


def _model_input(n: Nodes, values: str, x: str) -> None:
    scaled = n.add("input", "Mul", _column(n, values, "s"), x)
    rows = n.add("input", "Gather", scaled, "sample_of_row", axis=0)
    n.add("input", "Cast", rows, to=n.half, out="sample")
    n.add("input", "Gather", _flat_column(n, values, "t"), "sample_of_row", axis=0, out="timestep")


def _decoder(n: Nodes) -> None:
    """One convolution, then what only a decoder has; norms are the denoiser's to prove, and each is slow to build."""
    scaled = n.add("conv_out", "Mul", "latents", n.constant(1 / 32))
    x = n.conv("conv_out", n.add("conv_out", "Cast", scaled, to=n.half), (CHANNELS, 3 * FACTOR**2))
    x = n.add("pixels", "DepthToSpace", x, blocksize=FACTOR)
    x = n.add("pixels", "Mul", n.add("pixels", "Cast", x, to=TensorProto.FLOAT), n.constant(64))
    x = n.add("pixels", "Clip", n.add("pixels", "Add", x, n.constant(128)), n.constant(0), n.constant(255))
    x = n.add("pixels", "Transpose", n.add("pixels", "Round", x), perm=[0, 2, 3, 1])
    n.add("pixels", "Cast", x, to=TensorProto.UINT8, out="images")


_BODIES: dict[str, Callable[[Nodes], None]] = {
    "conditioning": _conditioning, "prologue": _prologue, "start": _start, "denoiser": _denoiser, "solver": _solver,
    "decoder": _decoder, "encoder": _encoder, "preview": _preview,
}  # fmt: skip


def _binding(name: str, precision: Precision) -> Binding:
    dtype, shape, lifetime = WIRES[name]
    halves: dict[Precision, DType] = {"fp16": "float16", "fp32": "float32"}
    return Binding(
        name=name, dtype=halves[precision] if dtype == "half" else dtype, shape=shape, lifetime=lifetime
    )  # fmt: skip


def _value(binding: Binding) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(binding.dtype))
    return helper.make_tensor_value_info(binding.name, kind, list(binding.shape))
