"""Plans for the fake TensorRT of a whole bundle, cut as engine/cut.py cuts, some of them of other weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from engine.bundle import load_bundle
from engine.cut import part_of, part_shapes
from engine.job import GateJob
from engine.plan import VERSION, Facts, Options, PlanInfo, identity_of, plan_path
from engine.profiles import parse_profiles
from engine.publish import publish
from engine.schema import FileEntry
from engine.verdict import NOT_YET, Verdict
from tests.fake_plans import H200, Shelf, plan_bytes, wires_of

EVERY = "dynamic:64-128@1-4"
Models = Mapping[str, onnx.ModelProto]
AS_IS: Mapping[str, Any] = MappingProxyType({})


def put(
    shelf: Shelf,
    *profiles: str,
    models: Models = AS_IS,
    parts: Mapping[str, int] = AS_IS,
    verdict: Verdict = NOT_YET,
) -> GateJob:
    """The plans of every graph, some of another model than the bundle's, some cut as engine/cut.py cuts; their job."""
    bundle = load_bundle(shelf.folder)
    found, version = parse_profiles(profiles or [EVERY], bundle), shelf.target.version or ""
    plans: dict[str, tuple[str, ...]] = {}
    for graph in bundle.graphs("fp16"):
        model, count = models.get(graph.name, onnx.load(shelf.folder / graph.file)), parts.get(graph.name, 1)
        for part in ((index, count) for index in range(1, count + 1)):
            ranges = [part_shapes(model, part, p.shapes(graph)) for p in found]
            cut = part_of(model, part)
            raw = plan_bytes(cut, ranges, version, 4096)
            info = PlanInfo(
                version_of_schema=VERSION, sha256="", options=Options(), mode="none", machine=H200, warnings=0,
                identity=identity_of(bundle, graph, "fp16", found, "tensorrt", version, ("9.0",), part), seconds=1.0,
                plan=FileEntry(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()), facts=Facts(),
                wires=wires_of(cut), verdict=verdict,
            )  # fmt: skip
            path = plan_path(shelf.folder, shelf.target.folder, found, "fp16", graph.name, part)
            publish(path, raw, info)
            plans[graph.name] = (*plans.get(graph.name, ()), str(path))
    texts = tuple(profile.text for profile in found)
    return GateJob(folder=str(shelf.folder), flavour="tensorrt", precision="fp16", profiles=texts, plans=plans)


def changed(shelf: Shelf, graph: str, change: Callable[[np.ndarray], object], name: str) -> Models:
    """The graph's model with one of its weights changed in place."""
    entry = next(one for one in load_bundle(shelf.folder).graphs("fp16") if one.name == graph)
    model = onnx.load(shelf.folder / entry.file)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(weight).copy()
    change(array)
    weight.CopyFrom(numpy_helper.from_array(array, name))
    return {graph: model}


def scale(factor: float) -> Callable[[np.ndarray], object]:
    return lambda array: np.multiply(array, factor, out=array, casting="unsafe")
