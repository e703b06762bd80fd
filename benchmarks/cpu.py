"""ONNX Runtime against PyTorch on this CPU: zturbo's default backend and diffusers' own pipeline, the same picture.

    python -m benchmarks.cpu [--bundle trt_models/emoji | --source models/emoji] [--quick]

Both contenders get the same weights, prompt, initial latents and scheduler class, each at the settings that a sweep
found fastest, each in its own process, in turns. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.machine import Bystanders
from benchmarks.pairs import interleaved, psnr
from benchmarks.report import as_json, print_tables, result_of
from benchmarks.sweep import Entrant, Trial, best_settings, start, thread_counts
from benchmarks.work import Turn, Work, work_from_bundle
from engine.errors import ExportMismatch, ZturboError
from engine.machine import usable_cores

ROOT = Path(__file__).resolve().parents[1]
MIN_PSNR_DB = 40.0
"""Below this the two did not paint the same picture, and their times say nothing. Rounding alone gives more than 50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to measure. repeats: pictures per trial of the sweep; 0 leaves the sweep out."""

    steps: int
    size_px: int | None
    repeats: int
    warmup: int
    pairs: int


FULL = Plan(steps=20, size_px=None, repeats=3, warmup=2, pairs=15)
QUICK = Plan(steps=2, size_px=128, repeats=0, warmup=1, pairs=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        with _bundle(options) as bundle:
            result = measure(bundle, QUICK if options.quick else FULL, console)
    except ZturboError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False)
        return 2
    print_tables(result, Console())
    out = options.out or (None if options.quick else ROOT / "benchmarks" / "results" / "cpu-emoji.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(as_json(result, indent=1) + "\n", encoding="utf-8")
    print(as_json(result, indent=None))
    return 0


def measure(bundle: Path, plan: Plan, console: Console) -> dict[str, Any]:
    """Sweep, take turns, compare: everything that the report says, as JSON types.

    Raises ExportMismatch where the pictures differ by more than MIN_PSNR_DB, ExecutionFailed where a contender fails.
    """
    work = work_from_bundle(bundle, size_px=plan.size_px, steps=plan.steps)
    ours, theirs = entrants(usable_cores())
    with Progress(console=console, transient=True) as progress:
        trials: dict[str, list[Trial]] = {}
        chosen = {}
        for entrant in (ours, theirs):
            chosen[entrant.name], trials[entrant.name] = _sweep(entrant, work, plan, progress)
        task = progress.add_task("taking turns", total=plan.warmup + plan.pairs)
        with start(ours, chosen[ours.name], work) as first, start(theirs, chosen[theirs.name], work) as second:
            bystanders = Bystanders((first.pid, second.pid))
            turns = interleaved(
                first, second, warmup=plan.warmup, pairs=plan.pairs, on_pair=lambda: progress.advance(task)
            )
            others = bystanders.cores()
    return result_of(
        work, ROOT, chosen, trials, {ours.name: turns[0], theirs.name: turns[1]},
        psnr_db=_likeness(*turns), other_cores=others,
    )  # fmt: skip


def entrants(count: int) -> tuple[Entrant, Entrant]:
    """The contenders zturbo and diffusers, with everything that the sweep may choose on a machine of `count` cores."""
    threads = thread_counts(count)
    policies = ("PASSIVE", "default")  # the first is what --quick takes: it bears a busy machine
    ours = Entrant(
        name="zturbo", factory="benchmarks.with_zturbo:ZturboContender",
        axes=(tuple({"threads": n} for n in threads),),
    )  # fmt: skip
    theirs = Entrant(
        name="diffusers", factory="benchmarks.with_diffusers:DiffusersContender",
        axes=(
            ({"channels_last": False, "attention": "sdpa", "inference_mode": True},),
            tuple({"threads": n, "omp_wait_policy": policy} for n in threads for policy in policies),
            ({"channels_last": False}, {"channels_last": True}),
            ({"attention": "sdpa"}, {"attention": "eager"}),
            ({"inference_mode": True}, {"inference_mode": False}),
        ),
    )  # fmt: skip
    return ours, theirs


def _sweep(entrant: Entrant, work: Work, plan: Plan, progress: Progress) -> tuple[Any, list[Trial]]:
    if plan.repeats == 0:
        return {key: value for axis in entrant.axes for key, value in axis[0].items()}, []
    total = 1 + sum(len(axis) - 1 for axis in entrant.axes)
    task = progress.add_task(f"settings of {entrant.name}", total=total)

    def on_trial(_: Entrant, trial: Trial) -> None:
        progress.advance(task)
        words = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        progress.console.print(f"{entrant.name}: {trial.seconds:.3f} s  {words}", highlight=False)

    return best_settings(entrant, work, repeats=plan.repeats, on_trial=on_trial)


def _likeness(ours: Sequence[Turn], theirs: Sequence[Turn]) -> float:
    """The lowest PSNR of any pair in dB. Raises ExportMismatch below MIN_PSNR_DB."""
    lowest = min(psnr(a.picture, b.picture) for a, b in zip(ours, theirs, strict=True))
    if lowest < MIN_PSNR_DB:
        raise ExportMismatch(
            "benchmark, pictures of zturbo and diffusers", actual=f"PSNR {lowest:.1f} dB",
            allowed=f"≥ {MIN_PSNR_DB:g} dB", remedy="They did different work; export the bundle again.",
        )  # fmt: skip
    return lowest


@contextlib.contextmanager
def _bundle(options: argparse.Namespace) -> Iterator[Path]:
    """The bundle to measure: the one named, or a fresh fp32 export of --source that is gone afterwards."""
    if options.source is None:
        yield options.bundle
        return
    from export.bundle import export_bundle

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / options.source.name
        export_bundle(options.source, out, precisions=("fp32",))
        yield out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description="ONNX Runtime against diffusers on this CPU"
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "trt_models" / "emoji", help="a bundle that export wrote")
    parser.add_argument("--source", type=Path, help="a diffusers folder to export and measure, instead of a bundle")
    parser.add_argument("--out", type=Path, help="where the JSON goes (benchmarks/results/cpu-emoji.json)")
    parser.add_argument("--quick", action="store_true", help="128 px, 2 steps, 2 pairs, no sweep: shows that it works")
    return parser


if __name__ == "__main__":
    sys.exit(main())
