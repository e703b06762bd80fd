"""`zturbo bench`: measure, then table, JSON, plots and page; or compare two results.

python -m benchmarks.bench.main [BUNDLE] [--quick]
"""

from __future__ import annotations

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
from benchmarks.bench.result import read_result
from benchmarks.bench.run import Run
from benchmarks.bench.tables import print_tables
from benchmarks.report import as_json
from engine.errors import OutputError, ZturboError

WIDTH = 150
"""Of tables that go to a file, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 where it failed."""
    asked = options.parser().parse_args(arguments)
    told = Console(stderr=True)
    try:
        if asked.compare is not None:
            first, second = (read_result(path) for path in asked.compare)
            print_comparison(first, second, Console())
            return 0
        gpu = None if asked.cpu else first_gpu()
        plan, specs = options.plan_of(asked, gpu=gpu is not None), options.specs_of(asked, gpu=gpu is not None)
        with _workplace(asked.out) as folder:
            run = Run(plan, specs, folder, gpu, lambda line: told.print(line, markup=False, highlight=False))
            result = run.measure()
    except ZturboError as error:
        told.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False)
        return 2
    pictures = result.pop("pictures")
    path = asked.out / "result.json"
    path.write_text(as_json(result, indent=1) + "\n", encoding="utf-8")
    (asked.out / "pictures.json").write_text(json.dumps(pictures), encoding="utf-8")
    write_page(result, pictures, draw(result, asked.out), asked.out / "index.html")
    console = Console()
    print_tables(result, console if console.is_terminal else Console(width=WIDTH))
    told.print(f"{path}, {asked.out / 'index.html'}", markup=False, highlight=False)
    return 0


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """The folder of the processes' logs, fresh; what else they wrote there is gone afterwards. Raises OutputError."""
    logs = out / "logs"
    try:
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            "bench, --out", actual=str(error), allowed="a folder that can be written", remedy="Name another."
        ) from error
    try:
        yield logs.resolve()
    finally:
        for path in logs.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".log":
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
