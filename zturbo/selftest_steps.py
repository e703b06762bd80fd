"""The self-test's steps on one target, from the import of its module to a picture by plans in parts.

onnx is imported by the step that makes the bundle. Does not know how findings are gathered (selftest.py) or shown.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.cuda import Cuda
from engine.dialect import FLAVOURS, Dialect, load_dialect
from engine.errors import BackendUnavailable
from engine.machine import Machine, machine_of
from engine.target import parse_target
from zturbo.extras import extra
from zturbo.selftest import Report, Skip, Step, Wrong
from zturbo.selftest_pictures import Pictures
from zturbo.selftest_plans import Plans, parts_text

TIMED_STEPS = 8


class Steps:
    """What the steps hand on to each other. target: as a user writes it. folder: the bundle's, which is there."""

    def __init__(self, target: str, folder: Path, report: Report) -> None:
        self._target, self._folder, self._report = target, folder, report
        self._flavour = FLAVOURS[parse_target(target).flavour]
        self._dialect: Dialect | None = None
        self._machine: Machine | None = None
        self._plans: Plans | None = None
        self._pictures: Pictures | None = None

    def all(self) -> list[Step]:
        """The steps in order. A portable flavour builds without a GPU."""
        to_build = ("TensorRT", "bundle") if self._flavour.portable else ("TensorRT", "GPU", "bundle")
        return [
            Step("TensorRT", self.module),
            Step("GPU", self.gpu, ("TensorRT",)),
            Step("bundle", self.bundle),
            Step("ONNX Runtime", self.onnxruntime, ("bundle",), optional=True),
            Step("build", self.build, to_build),
            Step("identity", self.identity, ("build",)),
            Step("parity gate", self.gate, ("GPU", "build")),
            Step("picture", self.picture, ("GPU", "build")),
            Step("capture", self.capture, ("GPU", "picture")),
            Step("build in parts", self.parts, ("build",)),
            Step("parts at the gate", self.gate, ("GPU", "build in parts")),
            Step("picture by parts", self.picture_by_parts, ("GPU", "build in parts")),
        ]

    def module(self) -> str:
        """The TensorRT that is installed."""
        try:
            self._dialect = dialect = load_dialect(self._flavour.name)
        except BackendUnavailable as error:
            raise Skip(f"no {self._flavour.title}: {error.actual}. {error.remedy}") from error
        self._report.facts["version"] = dialect.version
        known = dialect.compute_capabilities()
        typed = "strongly typed" if dialect.strongly_typed else "weakly typed"
        return f"{self._flavour.title} {dialect.version}, {typed}" + (f", for {', '.join(known)}" if known else "")

    def gpu(self) -> str:
        """The GPU that plans are to run on."""
        assert self._dialect is not None
        try:
            machine = machine_of(Cuda(extra=self._flavour.extra))
        except BackendUnavailable as error:
            raise Skip(f"no GPU: {error.actual}. {error.remedy}") from error
        known = self._dialect.compute_capabilities()
        if known and machine.compute_capability not in known:
            raise Skip(
                f"no GPU for {self._flavour.title}: {machine.gpu}, compute capability {machine.compute_capability}"
            )
        self._machine = machine
        self._report.facts["machine"] = msgspec.to_builtins(machine)
        capability, driver, cuda = machine.compute_capability, machine.driver, machine.cuda
        return f"{machine.gpu}, compute capability {capability}, driver {driver}, CUDA {cuda}"

    def bundle(self) -> str:
        """Make the bundle."""
        with extra(self._flavour.extra, command="doctor --selftest"):
            from zturbo.selftest_bundle import PROFILE, REQUEST, write_bundle

            bundle = write_bundle(self._folder)
        self._plans = Plans(self._folder, self._target, PROFILE, self._report)
        timed = replace(REQUEST, num_inference_steps=TIMED_STEPS)
        self._pictures = Pictures(self._folder, REQUEST, timed, self._report)
        return f"{len(bundle.graphs('fp16'))} graphs in fp16 and fp32, their results by onnx's own evaluator"

    def onnxruntime(self) -> str:
        """Another runtime on the same bundle: whether the reference itself is right."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise Skip("not installed")
        return self._made_pictures.once("onnxruntime", "fp32")

    def build(self) -> str:
        """Every graph in one plan."""
        return self._made_plans.build(1)

    def gate(self) -> str:
        """Every graph, then the loop, beside the reference."""
        return self._made_plans.judge()

    def picture(self) -> str:
        """Launch by launch."""
        return self._made_pictures.plain(self._flavour.name)

    def capture(self) -> str:
        """The loop as a CUDA graph."""
        return self._made_pictures.captured(self._flavour.name)

    def identity(self) -> str:
        """The plans are what is asked for here, and others are refused."""
        return self._made_plans.verify(None if self._machine is None else self._machine.compute_capability)

    def parts(self) -> str:
        """The denoiser in two plans."""
        words = self._made_plans.build(2)
        parts = parts_text(self._made_plans.infos)
        if parts != "denoiser 1/2, denoiser 2/2":
            raise Wrong(f"parts: {parts or 'none'}")
        return f"{words}: {parts}"

    def picture_by_parts(self) -> str:
        """They paint what the whole does."""
        return self._made_pictures.once(self._flavour.name, "fp16")

    @property
    def _made_plans(self) -> Plans:
        assert self._plans is not None
        return self._plans

    @property
    def _made_pictures(self) -> Pictures:
        assert self._pictures is not None
        return self._pictures
