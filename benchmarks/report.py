"""A measurement as JSON types, and as tables for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, machine, versions
from benchmarks.pairs import Summary
from benchmarks.sweep import Trial
from benchmarks.work import Settings, Turn, Work

QUIET_CORES = 0.2
"""Other work that is no reason to doubt the times."""


def result_of(
    work: Work,
    root: Path,
    chosen: Mapping[str, Settings],
    trials: Mapping[str, Sequence[Trial]],
    turns: Mapping[str, Sequence[Turn]],
    *,
    psnr_db: float,
    other_cores: float,
) -> dict[str, Any]:
    """Everything measured. speedup: the median over pairs of diffusers' seconds / zturbo's seconds.

    outside_graphs: the median over turns of the share of the denoising loop outside graph executions.
    other_cores: cores that were busy with other work meanwhile.
    """
    ratios = [b.seconds / a.seconds for a, b in zip(turns["zturbo"], turns["diffusers"], strict=True)]
    outside = [turn.outside / turn.stages["loop"] for turn in turns["zturbo"] if turn.outside is not None]
    ratio = Summary.of(ratios)
    return {
        "benchmark": "cpu", "speedup": ratio.median, "speedup_p5": ratio.p5, "speedup_p95": ratio.p95,
        "outside_graphs": Summary.of(outside).median, "psnr_db": psnr_db if math.isfinite(psnr_db) else None,
        "pairs": len(ratios), "other_cores": other_cores,
        "work": _work(work), "machine": machine(), "versions": versions(), "commit": commit(root),
        "contenders": {name: _contender(chosen[name], trials[name], turns[name]) for name in turns},
    }  # fmt: skip


def as_json(result: Mapping[str, Any], *, indent: int | None) -> str:
    """The result as JSON text; numbers keep five digits, which is more than a clock tells."""
    return json.dumps(_rounded(result), indent=indent, ensure_ascii=False)


def finish(result: Mapping[str, Any], out: Path | None) -> None:
    """Write the result where a file is named, its folder included, and print it as the last line."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(as_json(result, indent=1) + "\n", encoding="utf-8")
    print(as_json(result, indent=None))


def print_tables(result: Mapping[str, Any], console: Console) -> None:
    """The contenders side by side, where zturbo's time goes, and the sweep's choices."""
    work, where = result["work"], result["machine"]
    size = f"{work['width']}×{work['height']}, {work['steps']} steps"
    title = f"{work['model']}, {size}, guidance {work['guidance_scale']:g}, {work['scheduler']}"
    table = Table("contender", "median s", "p5", "p95", "peak MiB", "settings", title=title)
    for name, one in result["contenders"].items():
        seconds = one["seconds"]
        words = ", ".join(f"{key}={value}" for key, value in one["settings"].items())
        numbers = [f"{seconds[key]:.3f}" for key in ("median", "p5", "p95")]
        table.add_row(name, *numbers, f"{one['peak_bytes'] / 2**20:.0f}", words)
    console.print(table)
    stages = result["contenders"]["zturbo"]["stages"]
    console.print("zturbo by stage: " + ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in stages.items()))
    likeness = "equal" if result["psnr_db"] is None else f"PSNR {result['psnr_db']:.1f} dB"
    console.print(
        f"speedup {result['speedup']:.2f} ({result['speedup_p5']:.2f} to {result['speedup_p95']:.2f}, "
        f"{result['pairs']} pairs); outside graphs {100 * result['outside_graphs']:.2f} % of the loop; "
        f"pictures {likeness}"
    )
    if result["other_cores"] > QUIET_CORES:
        console.print(f"other work kept {result['other_cores']:.2f} cores busy meanwhile: repeat it on a quiet machine")
    console.print(f"{where['cpu']}, {where['cores']} cores, {where['system']}; " + _words(result["versions"]))


def _contender(settings: Settings, trials: Sequence[Trial], turns: Sequence[Turn]) -> dict[str, Any]:
    names = turns[0].stages
    return {
        "settings": dict(settings),
        "seconds": dataclasses.asdict(Summary.of([turn.seconds for turn in turns])),
        "stages": {name: Summary.of([turn.stages[name] for turn in turns]).median for name in names},
        "peak_bytes": max(turn.peak_bytes for turn in turns),
        "all_seconds": [turn.seconds for turn in turns],
        "sweep": [{"settings": dict(trial.settings), "seconds": trial.seconds} for trial in trials],
    }


def _work(work: Work) -> dict[str, Any]:
    names = ("prompt", "height", "width", "steps", "guidance_scale", "scheduler", "scheduler_class")
    return {"model": work.source.name, **{name: getattr(work, name) for name in names}}


def _words(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
