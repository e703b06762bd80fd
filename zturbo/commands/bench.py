"""`zturbo bench`: the benchmark of this machine; its options are benchmarks/bench/options.py's own."""

from __future__ import annotations

import typer

from zturbo.extras import extra


def run(context: typer.Context) -> None:
    """Measure every contender that runs here, and compare; `zturbo bench --help` lists the options."""
    with extra("bench", command="bench"):
        from benchmarks.bench.main import main

        code = main(context.args)
    raise typer.Exit(code)
