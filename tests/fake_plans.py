"""Plans for the fake TensorRT put beside a bundle, without a build: the graphs as they are, whole or cut at tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.shape_inference
import onnx.utils
import pytest

from engine.binding import PlanPrecision, variant_of
from engine.bundle import load_bundle
from engine.machine import Machine
from engine.plan import VERSION, Facts, Options, PlanInfo, Wires, identity_of, plan_path
from engine.profiles import parse_profiles
from engine.publish import publish
from engine.schema import FileEntry
from engine.target import Target
from engine.verdict import Verdict
from runtime.backends import tensorrt
from runtime.backends.base import BackendOptions
from tests import fake_cuda, fake_tensorrt
from tests.fake_tensorrt import dtype_of

H200 = Machine(gpu="NVIDIA H200", compute_capability="9.0", driver="unknown", cuda="13.0")
PASSED = Verdict(status="passed")


class Shelf:
    """TensorRT 10, an H200, and a bundle whose plans are put there one set at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str = "10") -> None:
        self.module = fake_tensorrt.install(monkeypatch, fake_tensorrt.fake(kind))
        self.cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
        self.folder = folder
        self.target = Target(flavour="tensorrt", version=fake_tensorrt.VERSIONS[kind], capabilities=("9.0",))

    def put(
        self, *profiles: str, precision: PlanPrecision = "fp16", cuts: Mapping[str, Sequence[str]] | None = None,
        verdict: Verdict = PASSED, scratch_bytes: int | None = None, told: bool = True,
    ) -> Path:  # fmt: skip
        """One set of these profiles; cuts: {graph: the tensors it is cut at}. Returns its folder.

        scratch_bytes: what its engines need; told: whether plan.json says so.
        """
        bundle = load_bundle(self.folder)
        found = parse_profiles(profiles, bundle)
        for graph in bundle.graphs(variant_of(precision)):
            shapes = [profile.shapes(graph) for profile in found]
            models = parts_of(onnx.load(self.folder / graph.file), (cuts or {}).get(graph.name, ()), shapes)
            for index, (model, ranges) in enumerate(models, 1):
                part = index, len(models)
                raw = plan_bytes(model, ranges, self.target.version or "", scratch_bytes or 4096)
                identity = identity_of(
                    bundle, graph, precision, found, "tensorrt", self.target.version or "", ("9.0",), part
                )
                entry = FileEntry(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
                info = PlanInfo(
                    version_of_schema=VERSION, sha256="", identity=identity, plan=entry, options=Options(), mode="none",
                    machine=H200, warnings=0, seconds=1.0, verdict=verdict, wires=wires_of(model),
                    facts=Facts(scratch_bytes=scratch_bytes if told else None),
                )  # fmt: skip
                path = plan_path(self.folder, self.target.folder, found, precision, graph.name, part)
                publish(path, raw, info)
        return path.parent

    def open(self, **options) -> tensorrt.TensorRTBackend:
        return tensorrt.open_backend(self.folder, load_bundle(self.folder), BackendOptions(**options))


def wires_of(model: onnx.ModelProto) -> Wires:
    """What a plan of this model reads and makes."""
    names = (tuple(value.name for value in values) for values in (model.graph.input, model.graph.output))
    inputs, outputs = names
    return Wires(inputs=inputs, outputs=outputs)


def plan_bytes(model: onnx.ModelProto, profiles: Sequence[Mapping], version: str, scratch_bytes: int) -> bytes:
    """What tests/fake_engine.py takes for a plan."""
    types = {value.name: dtype_of(value).name for value in [*model.graph.input, *model.graph.output]}
    head = {
        "version": version, "profiles": list(profiles), "types": types, "sharing": True, "scratch_bytes": scratch_bytes,
    }  # fmt: skip
    return json.dumps(head).encode() + b"\n" + model.SerializeToString()


def parts_of(model: onnx.ModelProto, cuts: Sequence[str], shapes: Sequence[dict]) -> list[tuple]:
    """The model cut at single tensors, each part with the ranges of its inputs; what crosses may have any shape."""
    if not cuts:
        return [(model, shapes)]
    inferred = onnx.shape_inference.infer_shapes(model)
    extractor = onnx.utils.Extractor(inferred)
    ends = [*([cut] for cut in cuts), [value.name for value in model.graph.output]]
    starts = [[value.name for value in model.graph.input], *([cut] for cut in cuts)]
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    parts = []
    for inputs, outputs in zip(starts, ends, strict=True):
        ranges = [
            {name: one.get(name) or any_shape(rank[name]) for name in inputs} for one in shapes
        ]  # fmt: skip
        parts.append((extractor.extract_model(inputs, outputs), ranges))
    return parts


def any_shape(rank: int) -> tuple:
    return (1,) * rank, (1,) * rank, (1 << 20,) * rank
