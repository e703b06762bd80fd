"""TensorRT-RTX plans built as a worker of the build does, of a bundle's graphs; without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx

from engine.binding import PlanPrecision, variant_of
from engine.bundle import graph_files, load_bundle
from engine.dialect import load_dialect
from engine.job import Job
from engine.plan import WHOLE, Options, Part, PlanInfo, identity_of
from engine.profiles import parse_profile
from engine.worker import build_plan

WORDS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""What TensorRT's log calls a precision."""


class Builds:
    """Builds of one bundle's graphs by a worker's code."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out, self.bundle = folder, out, load_bundle(folder)
        self.version = load_dialect("tensorrt_rtx").version

    def graph(self, name: str, precision: PlanPrecision = "fp16"):
        return next(graph for graph in self.bundle.graphs(variant_of(precision)) if graph.name == name)

    def attentions(self, name: str, precision: PlanPrecision = "fp16") -> int:
        """Each attention has a softmax, and nothing else does."""
        model = onnx.load(self.folder / self.graph(name, precision).file, load_external_data=False)
        return sum(node.op_type == "Softmax" for node in model.graph.node)

    def plan(
        self, name: str, *profiles: str, precision: PlanPrecision = "fp16", part: Part = WHOLE,
        capabilities: tuple[str, ...] = ("8.9",),
    ) -> PlanInfo:  # fmt: skip
        graph, bundle = self.graph(name, precision), self.bundle
        parsed = [parse_profile(text, bundle) for text in profiles or ("128@2",)]
        identity = identity_of(bundle, graph, precision, parsed, "tensorrt_rtx", self.version, capabilities, part)
        files = {file: bundle.files[file] for file in graph_files(bundle, graph)}
        return build_plan(Job(
            folder=str(self.folder), graph=graph, files=files, identity=identity, options=Options(), machine=None,
            plan=str(self.out / "any.plan"), timing_cache=None,
        ))  # fmt: skip
