"""What a model's own judge says of a contender's pictures, where the model brings one (models/emoji/judge.py).

The judge's functions are taken from its file; the pictures are the contender's, each from its own process.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import Child
from benchmarks.bench.solo import slug

JUDGE = "judge.py"
FIRST_SEED = 200_000
"""Of pictures of held-out pairs, as the judge itself counts."""
NEEDED = ("Matcher", "held_out_pairs", "ordered", "plain_prompt", "score", "rates")
STEPS = 20


def judge_of(source: Path) -> dict[str, Any] | None:
    """The functions of a model's judge; None where it has none, or one of another kind."""
    script = source / JUDGE
    if not script.is_file():
        return None
    kept = list(sys.path)
    try:
        found = runpy.run_path(str(script), run_name="judge")
    finally:
        sys.path[:] = kept
    return found if all(name in found for name in NEEDED) else None


def judged(spec: Spec, plan: Plan, folder: Path, judge: dict[str, Any]) -> dict[str, Any]:
    """Top-1 rates of the first `plan.judged` held-out pairs, 20 steps each. Raises ContenderFailed."""
    asked = judge["ordered"](judge["held_out_pairs"](), plan.judged)
    path = folder / f"{slug(spec.name)}-judged.npy"

    def pictures(child: Child) -> Iterator[Image.Image]:
        for index, pair in enumerate(asked):
            seed = FIRST_SEED + index
            child.paint(STEPS, plan.first_s, prompt=judge["plain_prompt"](*pair), seed=seed, out=str(path))
            yield Image.fromarray(np.load(path)[0])

    with Child(spec, folder / f"{slug(spec.name)}.log") as child:
        child.open(plan)
        score = judge["score"](judge["Matcher"](), asked, pictures(child), spec.name)
    path.unlink(missing_ok=True)
    return {"count": len(asked), **judge["rates"](score, "")}
