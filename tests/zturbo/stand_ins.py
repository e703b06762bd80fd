"""Stand-ins for what commands drive: a pipeline that paints grey and a plan without code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

import engine.plan
from engine.bundle import Bundle, file_sha256, load_bundle
from engine.plan import WHOLE, Facts, Options, Part, PlanInfo, Wires, identity_of, info_path, plan_path, seal
from engine.profiles import parse_profile
from engine.schema import FileEntry
from engine.verdict import NOT_YET
from engine.verdict import Verdict as PlanVerdict
from runtime.backends import Verdict
from runtime.images import Result

FACTS = Facts(layers=7, fused_attentions=3, types={"float16": 5, "float32": 2}, scratch_bytes=8192)


@dataclass
class FakePipeline:
    """Pipeline's face: checks the bundle, counts steps, paints every image in one grey."""

    bundle: Bundle
    verdicts: ClassVar = (Verdict("tensorrt", "no GPU here"), Verdict("onnxruntime", None))
    backend: ClassVar = SimpleNamespace(name="onnxruntime", device="cpu", precision="fp32")
    requests: ClassVar[list[object]] = []

    @classmethod
    def load(cls, folder: Path, backend: str = "auto", **options: object) -> FakePipeline:
        return cls(load_bundle(Path(folder)))

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def generate(self, request, on_step=None) -> Result:
        self.requests.append(request)
        total = request.num_inference_steps or 20
        for index in range(1, total + 1):
            if on_step is not None:
                small = np.full((request.num_images, 2, 2, 3), index, np.uint8)
                on_step(SimpleNamespace(index=index, total=total, preview=lambda small=small: small))
        arrays = np.full((request.num_images, 16, 16, 3), 128, np.uint8)
        dropped = {"prompt": max(0, len(request.prompt) - 600), "negative_prompt": 0}
        return Result(arrays, {"loop": 0.5, "total": 0.75}, {**request.metadata(), "dropped_tokens": dropped})


def assert_refused(done, kind: str) -> None:
    """Exit code 2, nothing on stdout, and on stderr one message of that kind with its four parts."""
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{kind}: ")]
    assert len(lines) == 1, done.stderr
    assert "got " in lines[0]
    assert "allowed: " in lines[0]
    assert "Traceback" not in done.stderr


def write_plan(
    bundle_folder: Path, *, part: Part = WHOLE, facts: Facts = FACTS, verdict: PlanVerdict = NOT_YET
) -> Path:
    """Write a plan of the decoder whose code is four bytes, and return its path."""
    bundle = load_bundle(bundle_folder)
    profile = parse_profile("128@2", bundle)
    decoder = next(graph for graph in bundle.graphs("fp32") if graph.name == "decoder")
    identity = identity_of(bundle, decoder, "fp32", [profile], "tensorrt_rtx", "1.7", ("8.6",), part)
    plan = plan_path(bundle_folder, "tensorrt_rtx-1.7", [profile], "fp32", decoder.name, part)
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"code")
    info = PlanInfo(
        version_of_schema=engine.plan.VERSION, sha256="", identity=identity,
        plan=FileEntry(size_bytes=4, sha256=file_sha256(plan)), options=Options(level=2), mode="strong", machine=None,
        wires=Wires(inputs=("latents",), outputs=("images",)), warnings=0, seconds=1.0, facts=facts, verdict=verdict,
    )  # fmt: skip
    info_path(plan).write_bytes(seal(info))
    return plan
