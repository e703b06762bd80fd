"""A bundle of three small graphs made with onnx alone: noise → latents (fp32) → fp16 → pixels, GroupNorm included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Binding, Graph, Precision, Stage
from engine.bundle import (
    FILE,
    VERSION,
    Bundle,
    Defaults,
    FileEntry,
    Latents,
    Limits,
    Reference,
    SchedulerEntry,
    Source,
    Tables,
    Tokenizer,
    encode_bundle,
    file_sha256,
    sealed,
)

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
LATENT = (4, "height/8", "width/8")
NOISE = Binding(name="noise", dtype="float32", shape=("samples", "draws", *LATENT), lifetime="per_sample")
LATENTS = Binding(name="latents", dtype="float32", shape=("samples", *LATENT), lifetime="carried")
SAMPLE = Binding(name="sample", dtype="float16", shape=("samples", *LATENT), lifetime="transient")
IMAGES = Binding(name="images", dtype="uint8", shape=("samples", "height/8", "width/8", 4), lifetime="transient")


def _graph(name: str, stage: Stage, precision: Precision, source: Binding, made: Binding) -> Graph:
    file = f"graphs/{name}.onnx"
    return Graph(name=name, stage=stage, file=file, precision=precision, inputs=(source,), outputs=(made,))


GRAPHS = (
    _graph("start", "once", "fp32", NOISE, LATENTS),
    _graph("denoiser", "loop", "fp16", LATENTS, SAMPLE),
    _graph("decoder", "final", "fp16", SAMPLE, IMAGES),
)


def constant(name: str, values: object, dtype: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _value(binding: Binding, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(binding.name, kind, list(binding.shape))


def model(nodes: list, inputs: list, outputs: list, constants: list) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "toy", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def start_model() -> onnx.ModelProto:
    """The bank's first draw, doubled."""
    nodes = [
        helper.make_node("Gather", ["noise", "zero"], ["first"], axis=1),
        helper.make_node("Mul", ["first", "two"], ["latents"]),
    ]
    return model(
        nodes, [_value(NOISE, FLOAT)], [_value(LATENTS, FLOAT)], [constant("zero", 0), constant("two", 2, np.float32)]
    )


def denoiser_model(scale: float = 1.0) -> onnx.ModelProto:
    """GroupNorm of two groups in fp16 as TorchScript writes it, weight and bias, after an fp32 island sin(999·x)."""
    nodes = [
        helper.make_node("Mul", ["latents", "big"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["wave"]),
        helper.make_node("Cast", ["wave"], ["half"], to=HALF),
        helper.make_node("Reshape", ["half", "grouped"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "ones", "zeros"], ["normed"], epsilon=1e-5),
        helper.make_node("Shape", ["half"], ["shape"]),
        helper.make_node("Reshape", ["normed", "shape"], ["whole"]),
        helper.make_node("Mul", ["whole", "weight"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["sample"]),
    ]
    constants = [
        constant("big", 999, np.float32), constant("grouped", [0, 2, -1]), constant("ones", [1, 1], np.float16),
        constant("zeros", [0, 0], np.float16), constant("weight", np.full((4, 1, 1), scale), np.float16),
        constant("bias", np.arange(4).reshape(4, 1, 1), np.float16),
    ]  # fmt: skip
    return model(nodes, [_value(LATENTS, FLOAT)], [_value(SAMPLE, HALF)], constants)


def decoder_model() -> onnx.ModelProto:
    """Clamped to bytes, channels last; the cast to uint8 is the last node, as TensorRT wants it."""
    nodes = [
        helper.make_node("Cast", ["sample"], ["float"], to=FLOAT),
        helper.make_node("Abs", ["float"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], ["images"], to=UINT8),
    ]
    return model(nodes, [_value(SAMPLE, HALF)], [_value(IMAGES, UINT8)], [])


SUFFIXES = (".onnx", ".data", ".npz", ".json")
MODELS = {"start": start_model, "denoiser": denoiser_model, "decoder": decoder_model}


def write_bundle(
    folder: Path, *, scale: float = 1.0, steps: int = 100, broken: str | None = None, external: bool = False
) -> Path:
    """Write the bundle. scale changes the denoiser's weights, steps only the tables; broken: a graph of no sense.

    external: every constant of the denoiser lies in `denoiser.onnx.data`, as where weights exceed 2 GB.
    """
    (folder / "graphs").mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tables.npz", "reference.npz"):
        (folder / name).write_text(f"{name} {steps}")
    for graph in GRAPHS:
        made = denoiser_model(scale) if graph.name == "denoiser" else MODELS[graph.name]()
        raw = b"no ONNX at all" if graph.name == broken else made.SerializeToString()
        (folder / graph.file).write_bytes(raw)
        if external and graph.name == "denoiser":
            path = folder / graph.file
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx appends to what is there
            onnx.save(made, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in SUFFIXES]
    files = {
        path.relative_to(folder).as_posix(): FileEntry(size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in paths
        if path.name != FILE and "engines" not in path.parts
    }
    (folder / FILE).write_bytes(encode_bundle(sealed(_bundle(files, steps))))
    return folder


def _bundle(files: dict[str, FileEntry], steps: int) -> Bundle:
    euler = SchedulerEntry(class_name="EulerDiscreteScheduler", settings={}, min_steps=1, max_steps=steps)
    return Bundle(
        version=VERSION, sha256="", name="toy", family="toy", source=Source(path="../toy", sha256="0" * 64),
        made_with={}, latents=Latents(channels=4, factor=8), limits=Limits(min_px=64, max_px=512, multiple_px=8),
        defaults=Defaults(height=128, width=128, num_inference_steps=4, guidance_scale=5.0, scheduler="euler"),
        guidance_offset=0.0, tokenizer=Tokenizer(file="tokenizer.json", max_tokens=77),
        tables=Tables(file="tables.npz", rows=200, columns=("p",), schedulers={"euler": euler}),
        reference=Reference(file="reference.npz", cases=()), variants={"fp16": GRAPHS}, files=files,
    )  # fmt: skip
