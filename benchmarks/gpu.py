"""The same eight requests on a backend of choice: pictures, wall times by stage, likeness of two runs.

    python -m benchmarks.gpu run trt_models/emoji --backend tensorrt --out out/gpu
    python -m benchmarks.gpu run trt_models/emoji --backend pytorch --precision fp32 --out out/reference
    python -m benchmarks.gpu compare out/gpu out/reference

The noise depends on the seeds alone, so two runs differ by rounding only, whatever machine each was taken on.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import pairs
from benchmarks.machine import gpu_facts
from engine.errors import OptionInvalid, ZturboError
from engine.plan import PlanInfo, engines_folder, read_info
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
    """Paint the requests, measure the stages; writes pictures.npz, sheet.png and result.json."""
    requests = [
        Request(
            prompt=prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            height=options.size, width=options.size,
        )
        for seed, prompt in enumerate(PROMPTS[: options.requests])
    ]  # fmt: skip
    # Without a cache every round computes what it tells of: a prompt's conditioning would be made in the first alone.
    with Pipeline.load(options.bundle, options.backend, precision=options.precision, cache_mib=0) as pipeline:
        results = [pipeline.generate(request) for request in requests]
        repeats = [pipeline.generate(request) for _ in range(options.repeats) for request in requests]
        made_by = {
            "backend": pipeline.backend.name,
            "device": pipeline.backend.device,
            "steps": STEPS,
            "guidance_scale": GUIDANCE,
            "captures": pipeline.backend.captures.captured,
        }
    plans, machine = plans_of(options.bundle), gpu_facts(options.backend)
    found = {"benchmark": "gpu-run", **made_by, **_times(repeats), "plans": plans, "machine": machine}
    save(options.out, np.concatenate([result.arrays for result in results]), found)
    return found


def save(folder: Path, images: NDArray[np.uint8], found: dict[str, Any]) -> None:
    """pictures.npz: `images`, (requests, H, W, 3) uint8; sheet.png; result.json."""
    save_png(
        contact_sheet([Image.fromarray(image) for image in images], PROMPTS[: len(images)], COLUMNS),
        folder / "sheet.png",
    )
    np.savez_compressed(folder / "pictures.npz", images=images)
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def plans_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What plan.json tells of every plan of a bundle, by its path: how it was built, and what the gate found."""
    root = engines_folder(folder)
    return {path.relative_to(root).as_posix(): _plan(read_info(path, "")) for path in sorted(root.rglob("*.plan"))}


def _plan(info: PlanInfo) -> dict[str, Any]:
    errors = [c.error / c.allowed for c in info.verdict.comparisons if c.allowed > 0]
    return {
        "seconds": info.seconds, "size_bytes": info.plan.size_bytes, "mode": info.mode, "warnings": info.warnings,
        "facts": msgspec.to_builtins(info.facts), "gate": info.verdict.status, "reason": info.verdict.reason,
        "error_of_allowed": max(errors, default=None),
    }  # fmt: skip


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
    for prompt, value in zip(PROMPTS, found, strict=False):
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Eight requests on a backend")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="paint and measure")
    one.add_argument("bundle", type=Path)
    one.add_argument("--backend", default="tensorrt")
    one.add_argument("--precision", choices=("fp16", "fp32"), default=None)
    one.add_argument("--size", type=int, default=256, help="pixels along each side")
    one.add_argument("--requests", type=int, default=len(PROMPTS), help="how many of the eight, the first ones")
    one.add_argument("--repeats", type=int, default=5, help="timed rounds of the requests; 0 leaves them out")
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("compare", help="how alike two runs are")
    two.add_argument("ours", type=Path)
    two.add_argument("reference", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
