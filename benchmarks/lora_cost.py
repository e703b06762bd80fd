"""What LoRA inputs cost a step: two bundles of one model, with and without them, step by step in turn.

`python -m benchmarks.lora_cost PLAIN LORAS --backend tensorrt --precision fp16 [--lora FILE]`: the median seconds of a
step of each, and of their difference pair by pair, as one JSON line. Both bundles have to be of one source.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from runtime.pipeline import Pipeline
from runtime.request import Request

WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = _parser().parse_args(arguments)
    with ExitStack() as stack:
        plain, taking = (
            stack.enter_context(Pipeline.load(folder, given.backend, precision=given.precision, device=given.device))
            for folder in (given.plain, given.loras)
        )
        print(json.dumps(measured(plain, taking, given.steps, given.pairs, given.size, given.lora)))


def measured(
    plain: Pipeline, taking: Pipeline, steps: int, pairs: int, size: int | None = None, lora: Path | None = None
) -> dict[str, Any]:
    """Milliseconds of a step of each pipeline: medians, and of the differences of runs that followed each other.

    What is timed is the loop of one guided picture, as Result.seconds has it. lora: a file for the second pipeline,
    without one it adds zeros, which cost as much.
    """
    common: dict[str, Any] = {"prompt": "a cat", "height": size, "width": size, "num_inference_steps": steps, "seed": 0}
    contenders = [
        (plain, Request(**common, guidance_scale=5)),
        (taking, Request(**common, guidance_scale=5, loras=[] if lora is None else [lora])),
    ]
    times = [
        [1000 * one.generate(request).seconds["loop"] / steps for one, request in contenders]
        for _ in range(WARM_UP + pairs)
    ]
    kept, inputs = times[WARM_UP:], taking.bundle.lora_inputs
    return {
        "plain_ms": median(a for a, _ in kept), "loras_ms": median(b for _, b in kept),
        "added_ms": median(b - a for a, b in kept), "ratio": median(b / a for a, b in kept),
        "pairs": pairs, "steps": steps, "rank": None if inputs is None else inputs.rank,
        "backend": plain.backend.name, "device": plain.backend.device, "precision": plain.backend.precision,
        "size": size, "plain": plain.bundle.name, "loras": taking.bundle.name,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_cost", description=__doc__)
    parser.add_argument("plain", type=Path, help="a bundle without LoRA inputs")
    parser.add_argument("loras", type=Path, help="a bundle of the same source with them")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--device")
    parser.add_argument("--size", type=int, help="height and width in pixels; default: the bundle's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--lora", type=Path)
    return parser


if __name__ == "__main__":
    main()
