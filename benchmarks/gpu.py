"""The same eight requests on a backend of choice: pictures, time per step of the plain loop, likeness of two runs.

    python -m benchmarks.gpu run trt_models/emoji --backend tensorrt --build 256@2 --out out/gpu
    python -m benchmarks.gpu run trt_models/emoji --backend pytorch --precision fp32 --out out/reference
    python -m benchmarks.gpu compare out/gpu out/reference

The noise depends on the seeds alone, so two runs differ by rounding only, whatever machine each was taken on.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks import pairs
from engine.build import BuildEvent, build_engines
from engine.dialect import FLAVOURS, load_dialect
from engine.errors import OptionInvalid, ZturboError
from engine.machine import machine_of, processor_name
from runtime.images import contact_sheet, save_png
from runtime.pipeline import Pipeline
from runtime.request import Request

if TYPE_CHECKING:
    from runtime.images import Result

PROMPTS = (
    "a cat on a white background", "a rocket on a blue background", "a small pizza on teal",
    "a large sunflower on purple", "a panda, pink background", "a cat left of a pizza on white",
    "an owl above a book on yellow", "a robot next to a guitar on orange",
)  # fmt: skip
"""One request each; its place is its seed."""
STEPS, GUIDANCE, COLUMNS = 20, 3.0, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or compare; returns the exit code: 0, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    try:
        found = run(options) if options.command == "run" else compare(options.ours, options.reference)
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build where asked to, paint the requests, measure the loop; writes pictures.npz, sheet.png and result.json."""
    built = {}
    if options.build:
        infos = build_engines(options.bundle, options.backend, options.build, on_progress=_tell)
        built = {f"{info.identity.profile}/{info.identity.graph}": _plan(info) for info in infos}
    requests = [
        Request(
            prompt=prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            height=options.size, width=options.size,
        )
        for seed, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    with Pipeline.load(options.bundle, options.backend, precision=options.precision) as pipeline:
        results = [pipeline.generate(request) for request in requests]
        repeats = [pipeline.generate(request) for _ in range(options.repeats) for request in requests]
        made_by = {
            "backend": pipeline.backend.name,
            "device": pipeline.backend.device,
            "steps": STEPS,
            "guidance_scale": GUIDANCE,
        }
    found = {"benchmark": "gpu-run", **made_by, **_times(repeats), "plans": built, "machine": facts(options.backend)}
    save(options.out, results, found)
    return found


def save(folder: Path, results: Sequence[Result], found: dict[str, Any]) -> None:
    """pictures.npz: `images`, (8, H, W, 3) uint8; sheet.png; result.json."""
    images = np.concatenate([result.arrays for result in results])
    save_png(contact_sheet([Image.fromarray(image) for image in images], PROMPTS, COLUMNS), folder / "sheet.png")
    np.savez_compressed(folder / "pictures.npz", images=images)
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compare(ours: Path, reference: Path) -> dict[str, Any]:
    """PSNR of each picture of one run against another's, in dB, and their median. Raises OptionInvalid."""
    for folder in (ours, reference):
        if not (folder / "pictures.npz").is_file():
            raise OptionInvalid(
                "compare", actual=f"no pictures.npz in {folder}", allowed="a folder that `run --out` wrote",
                remedy="Run it first.",
            )  # fmt: skip
    both = (np.load(folder / "pictures.npz")["images"] for folder in (ours, reference))
    found = [psnr(a, b) for a, b in zip(*both, strict=True)]
    for prompt, value in zip(PROMPTS, found, strict=True):
        print(f"{value:6.2f} dB  {prompt}")
    first, second = (json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (ours, reference))
    names = ("backend", "device", "step_ms", "step_p95_ms", "machine")
    return {
        "benchmark": "gpu-compare", "median_psnr_db": float(np.median(found)), "psnr_db": found,
        "run": {name: first.get(name) for name in names}, "reference": {name: second.get(name) for name in names},
    }  # fmt: skip


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """PSNR in dB, 999 where the pictures are equal (JSON has no infinity)."""
    value = pairs.psnr(a, b)
    return round(value, 3) if math.isfinite(value) else 999.0


def facts(backend: str) -> dict[str, Any]:
    """The GPU and the versions that a result is of."""
    found: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__}
    if backend in FLAVOURS:
        from engine.cuda import Cuda

        machine = machine_of(Cuda())
        return {
            **found, backend: load_dialect(backend).version, "gpu": machine.gpu, "driver": machine.driver,
            "compute_capability": machine.compute_capability, "cuda": machine.cuda,
        }  # fmt: skip
    package = {"pytorch": "torch"}.get(backend, backend)
    return {**found, "processor": processor_name(), package: importlib.metadata.version(package)}


def _times(results: Sequence[Result]) -> dict[str, float]:
    """Wall milliseconds per step of the loop, median and p95, and per picture of the other stages, median."""
    if not results:
        return {}
    step = [1e3 * result.seconds["loop"] / STEPS for result in results]
    others = {
        f"{stage}_ms": round(1e3 * float(np.median([result.seconds[stage] for result in results])), 3)
        for stage in ("conditioning", "decode", "total")
    }
    median, p95 = (round(float(value), 4) for value in np.percentile(step, (50, 95)))
    return {"step_ms": median, "step_p95_ms": p95, **others}


def _plan(info: Any) -> dict[str, Any]:
    return {"seconds": info.seconds, "size_bytes": info.plan.size_bytes, "mode": info.mode, "warnings": info.warnings}


def _tell(event: BuildEvent) -> None:
    print(event, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Eight requests on a backend")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="paint and measure")
    one.add_argument("bundle", type=Path)
    one.add_argument("--backend", default="tensorrt")
    one.add_argument("--precision", choices=("fp16", "fp32"), default=None)
    one.add_argument("--build", nargs="*", default=[], metavar="PROFILE", help="build plans for these profiles first")
    one.add_argument("--size", type=int, default=256, help="pixels along each side")
    one.add_argument("--repeats", type=int, default=5, help="timed rounds of the eight requests; 0 leaves them out")
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("compare", help="how alike two runs are")
    two.add_argument("ours", type=Path)
    two.add_argument("reference", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
