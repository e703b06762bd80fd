"""`zturbo bench`: measure, then table, JSON, plots and page; or compare two results.

python -m benchmarks.bench.main [BUNDLE] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.bench import options
from benchmarks.bench.compare import print_comparison
from benchmarks.bench.gpu_memory import first_gpu
from benchmarks.bench.page import write_page
from benchmarks.bench.plots import draw
from benchmarks.bench.result import Result, read_result
from benchmarks.bench.run import Run
from benchmarks.bench.tables import print_tables
from benchmarks.report import as_json
from engine.errors import OutputError, ZturboError

RESULT, PICTURES, PAGE = "result.json", "pictures.json", "index.html"
WIDTH = 150
"""Of tables that go to a file, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 where it failed."""
    asked = options.parser().parse_args(arguments)
    told = Console(stderr=True)
    try:
        if asked.compare is not None:
            first, second = (read_result(path) for path in asked.compare)
            print_comparison(first, second, _console())
            return 0
        if asked.page is not None:
            show(read_result(asked.page / RESULT), asked.page, told)
            return 0
        result = measured(asked, told)
    except ZturboError as error:
        told.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False)
        return 2
    pictures = result.pop("pictures")
    (asked.out / RESULT).write_text(as_json(result, indent=1) + "\n", encoding="utf-8")
    (asked.out / PICTURES).write_text(json.dumps(pictures), encoding="utf-8")
    show(result, asked.out, told)
    return 0


def measured(asked: argparse.Namespace, told: Console) -> Result:
    """A run as the options have it. Raises ZturboError."""
    gpu = None if asked.cpu else first_gpu()
    plan, specs = options.plan_of(asked, gpu=gpu is not None), options.specs_of(asked, gpu=gpu is not None)
    with _workplace(asked.out) as folder:
        run = Run(plan, specs, folder, gpu, lambda line: told.print(line, markup=False, highlight=False))
        return run.measure()


def show(result: Result, out: Path, told: Console) -> None:
    """Plots and page beside the result's file, and tables on stdout."""
    pictures = out / PICTURES
    shown = json.loads(pictures.read_text(encoding="utf-8")) if pictures.is_file() else {}
    plots = draw(result, out)
    write_page(result, shown, plots, out / PAGE)
    print_tables(result, _console())
    if not plots:
        told.print("No plots: matplotlib is not installed (the extra 'bench').")
    told.print(f"{out / RESULT}, {out / PAGE}", markup=False, highlight=False)


def _console() -> Console:
    """Stdout, wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """The folder of the processes' logs. What else they write there is gone when the block ends without an error; what
    lay there before stays, but for logs. Raises OutputError.
    """
    logs = out / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for path in logs.glob("*.log"):
            path.unlink()
        before = set(logs.iterdir())
    except OSError as error:
        raise OutputError(
            "bench, --out", actual=str(error), allowed="a folder that can be written", remedy="Name another."
        ) from error
    yield logs.resolve()
    for path in set(logs.iterdir()) - before:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".log":
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
