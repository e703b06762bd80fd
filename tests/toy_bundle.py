"""A bundle of three small graphs made with onnx alone: noise → latents (fp32) → fp16 → pixels, GroupNorm included.

Its reference is real: what the graphs compute, once more in numpy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Binding, Graph, Precision, Stage
from engine.bundle import FILE, VERSION, Bundle, encode_bundle, sealed
from engine.digest import file_sha256
from engine.schema import (
    Defaults,
    FileEntry,
    Latents,
    Limits,
    LoopCase,
    Reference,
    ReferenceCase,
    SchedulerEntry,
    Source,
    Tables,
)
from engine.tokens import Chunked

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
    for name in ("tokenizer.json", "tables.npz"):
        (folder / name).write_text(f"{name} {steps}")
    np.savez(folder / "reference.npz", **reference(scale))
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
    (folder / FILE).write_bytes(encode_bundle(sealed(_bundle(files, steps, scale))))
    return folder


TOKENIZER = Chunked(file="tokenizer.json", max_tokens=77, max_chunks=8, bos_id=0, eos_id=1, pad_id=1)
COMMON = {"tokens": 77, "draws": 1}
CASES = {
    "default": {"rows": 2, "samples": 1, "height": 128, "width": 128, **COMMON},
    "small": {"rows": 3, "samples": 2, "height": 64, "width": 64, **COMMON},
    "odd": {"rows": 1, "samples": 1, "height": 64, "width": 72, **COMMON},
}


def reference(scale: float = 1.0) -> dict[str, np.ndarray]:
    """reference.npz: `<case>/<graph>/<binding>` and `loop/<wire>`, the graphs computed in fp32."""
    arrays = {}
    for seed, (case, dims) in enumerate(CASES.items()):
        noise = np.random.default_rng(seed).standard_normal(NOISE.resolve(dims)).astype(np.float32)
        for graph, wires in run(noise, scale).items():
            arrays |= {f"{case}/{graph}/{wire}": array for wire, array in wires.items()}
    loop = run(np.random.default_rng(9).standard_normal(NOISE.resolve(CASES["default"])).astype(np.float32), scale)
    wires = {**loop["start"], **loop["decoder"]}
    return {**arrays, **{f"loop/{wire}": wires[wire] for wire in ("noise", "latents", "images")}}


def run(noise: np.ndarray, scale: float, half: type = np.float32) -> dict[str, dict[str, np.ndarray]]:
    """{graph: {wire: array}} of all graphs from this noise. half: what the fp16 graphs' values are rounded to."""
    latents = noise[:, 0] * np.float32(2)
    wave = np.sin(latents * np.float32(999)).astype(half).astype(np.float32)
    groups = wave.reshape(len(wave), 2, -1)
    normed = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + np.float32(1e-5))
    whole = normed.astype(half).astype(np.float32).reshape(wave.shape)
    sample = (whole * np.float32(scale) + np.arange(4, dtype=np.float32).reshape(4, 1, 1)).astype(half)
    sample = sample.astype(np.float32)
    images = np.abs(sample).transpose(0, 2, 3, 1).astype(np.uint8)
    return {
        "start": {"noise": noise, "latents": latents},
        "denoiser": {"latents": latents, "sample": sample},
        "decoder": {"sample": sample, "images": images},
    }


def fp16_error(dims: dict[str, int], seed: int, scale: float) -> dict[str, dict[str, float]]:
    """{graph: {output: ‖fp16 − fp32‖ / ‖fp32‖}} of a case."""
    noise = np.random.default_rng(seed).standard_normal(NOISE.resolve(dims)).astype(np.float32)
    exact, rounded = run(noise, scale), run(noise, scale, np.float16)
    pairs = {"denoiser": "sample", "decoder": "images"}
    return {
        graph: {wire: _error(rounded[graph][wire].astype(np.float32), exact[graph][wire].astype(np.float32))}
        for graph, wire in pairs.items()
    }


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _bundle(files: dict[str, FileEntry], steps: int, scale: float) -> Bundle:
    euler = SchedulerEntry(
        class_name="EulerDiscreteScheduler", settings={}, min_steps=1, max_steps=steps, aliases=(), etas=(), order=1,
        warm=0,
    )  # fmt: skip
    return Bundle(
        version=VERSION, sha256="", name="toy", family="toy", source=Source(path="../toy", sha256="0" * 64),
        made_with={}, latents=Latents(channels=4, factor=8), limits=Limits(min_px=64, max_px=512, multiple_px=8),
        defaults=Defaults(height=128, width=128, num_inference_steps=4, guidance_scale=5.0, scheduler="euler"),
        guidance_offset=0.0, guidance="classifier_free", tokenizer=TOKENIZER, max_clip_skip=0,
        tables=Tables(file="tables.npz", rows=200, columns=("p",), schedulers={"euler": euler}, refused={}),
        reference=_reference(scale), variants={"fp16": GRAPHS}, files=files,
    )  # fmt: skip


def _reference(scale: float) -> Reference:
    errors = {case: fp16_error(dims, seed, scale) for seed, (case, dims) in enumerate(CASES.items())}
    cases = tuple(ReferenceCase(name=case, dims=CASES[case], fp16_error=error) for case, error in errors.items())
    loop = LoopCase(dims=CASES["default"], evaluations=4, fp16_error={"latents": 0.0, **errors["default"]["decoder"]})
    return Reference(file="reference.npz", cases=cases, loop=loop)
