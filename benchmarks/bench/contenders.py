"""Who takes part, and with which settings: chosen by device, before anything of them is imported.

Knows names and settings alone; what a contender does with them is benchmarks/bench/by_*.py's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import OptionInvalid

DIFFUSERS = "benchmarks.bench.by_diffusers:DiffusersContender"
BACKEND = "benchmarks.bench.by_backend:BackendContender"
HIDDEN: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": ""}
"""For a process that is to find no GPU."""
Kind = str
"""What a variant differs by from the contender it is one of: `precision` or `attention`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A contender before it runs.

    factory: `module:class` in the child. settings: what it is opened with. environment: variables of its process, None
    to unset one. of: of a variant, the contender that it is compared with; by: in what. python: of its process.
    """

    name: str
    factory: str
    settings: dict[str, Any]
    environment: dict[str, str | None] = field(default_factory=dict)
    of: str = ""
    by: Kind = ""
    python: str = sys.executable

    @property
    def uses_torch(self) -> bool:
        """Whether torch runs it."""
        return self.factory == DIFFUSERS or self.settings.get("backend") == "pytorch"


def on_gpu(precision: str, *, autotune: bool) -> list[Spec]:
    """The contenders of a machine with a GPU; precision: theirs, but for variants in fp32."""
    half = {"precision": precision}
    eager = {**half, "compile": None, "attention": "fused"}
    found = [
        Spec(name="diffusers", factory=DIFFUSERS, settings=eager),
        _variant("diffusers fp32", "diffusers", "precision", DIFFUSERS, {**eager, "precision": "fp32"}),
        _variant("diffusers unfused", "diffusers", "attention", DIFFUSERS, {**eager, "attention": "unfused"}),
        Spec(name="torch.compile", factory=DIFFUSERS, settings={**eager, "compile": "reduce-overhead"}),
        *_autotuned(eager, autotune=autotune),
        *_pytorch(precision, "fp32"),
        *_onnxruntime({"device": "cuda", "precision": precision, "attention": "plain"}, "fp32"),
    ]
    for flavour in ("tensorrt", "tensorrt_rtx"):
        captured = {"backend": flavour, **half, "capture": True}
        found += [
            Spec(name=flavour, factory=BACKEND, settings=captured),
            Spec(name=f"{flavour} plain", factory=BACKEND, settings={**captured, "capture": False}),
        ]
    wide = {"backend": "tensorrt", "precision": "fp32", "capture": True}
    return [*found, _variant("tensorrt fp32", "tensorrt", "precision", BACKEND, wide)]


def on_cpu(threads: int, *, autotune: bool) -> list[Spec]:
    """The contenders of a machine without a GPU: fp32, for torch's convolutions in fp16 take half a minute a picture.

    TensorRT is asked all the same, so that the result says why it does not run.
    """
    eager = {"precision": "fp32", "compile": None, "attention": "fused", "threads": threads}
    found = [
        Spec(name="diffusers", factory=DIFFUSERS, settings=eager),
        _variant("diffusers unfused", "diffusers", "attention", DIFFUSERS, {**eager, "attention": "unfused"}),
        Spec(name="torch.compile", factory=DIFFUSERS, settings={**eager, "compile": "default"}),
        *_autotuned(eager, autotune=autotune),
        *_pytorch("fp32", None, threads=threads),
        *_onnxruntime({"device": "cpu", "precision": "fp32", "attention": "plain"}, "fp16"),
    ]
    found += [
        Spec(name=flavour, factory=BACKEND, settings={"backend": flavour, "precision": "fp16", "capture": True})
        for flavour in ("tensorrt", "tensorrt_rtx")
    ]
    return [replace(spec, environment={**spec.environment, **HIDDEN}) for spec in found]


def _autotuned(eager: Mapping[str, Any], *, autotune: bool) -> list[Spec]:
    settings = {**eager, "compile": "max-autotune"}
    return [Spec(name="torch.compile max-autotune", factory=DIFFUSERS, settings=settings)] if autotune else []


def _pytorch(precision: str, other: str | None, **settings: Any) -> list[Spec]:
    """Our backend of PyTorch; its unfused attention, and another precision where one is named."""
    # Its kinds of cast and fused operations are fp16's and fp32's; bf16 is for plans.
    own = {"backend": "pytorch", "precision": "fp16" if precision == "bf16" else precision, **settings}
    found = [
        Spec(name="pytorch", factory=BACKEND, settings={**own, "attention": "fused"}),
        _variant("pytorch unfused", "pytorch", "attention", BACKEND, {**own, "attention": "unfused"}),
    ]
    if other is not None:
        settings = {**own, "attention": "fused", "precision": other}
        found.append(_variant(f"pytorch {other}", "pytorch", "precision", BACKEND, settings))
    return found


def _onnxruntime(settings: Mapping[str, Any], other: str) -> list[Spec]:
    own = {"backend": "onnxruntime", **settings}
    own["precision"] = "fp16" if own["precision"] == "bf16" else own["precision"]
    name = "onnxruntime"
    return [
        Spec(name=name, factory=BACKEND, settings=own),
        _variant(f"{name} {other}", name, "precision", BACKEND, {**own, "precision": other}),
        _variant(f"{name} fused", name, "attention", BACKEND, {**own, "attention": "fused"}),
    ]


def _variant(name: str, of: str, by: Kind, factory: str, settings: Mapping[str, Any]) -> Spec:
    return Spec(name=name, factory=factory, settings=dict(settings), of=of, by=by)


def chosen(specs: Sequence[Spec], names: Sequence[str], pythons: Mapping[str, str]) -> list[Spec]:
    """Those that are named, all where none is, each with its Python.

    A name stands for a contender and its variants, `tensorrt` for `tensorrt plain` too; `NAME=` alone (`tensorrt=`)
    for itself. pythons: {first word of a name: interpreter}. Raises OptionInvalid for a name that nobody has.
    """
    known = {spec.name for spec in specs} | {spec.name.split()[0] for spec in specs}
    for option, given in (("--contenders", [name.rstrip("=") for name in names]), ("--python", list(pythons))):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise OptionInvalid(
                f"bench, {option}", actual=", ".join(unknown), allowed=", ".join(sorted(known)),
                remedy="A first word stands for all that begin with it.",
            )  # fmt: skip
    picked = [spec for spec in specs if not names or any(_stands_for(name, spec.name) for name in names)]
    here = {spec.name for spec in picked}
    return [
        replace(
            spec, python=pythons.get(spec.name, pythons.get(spec.name.split()[0], spec.python)),
            of=spec.of if spec.of in here else "",
        )
        for spec in picked
    ]  # fmt: skip


def _stands_for(word: str, name: str) -> bool:
    return name == word.rstrip("=") if word.endswith("=") else name == word or name.startswith(f"{word} ")
