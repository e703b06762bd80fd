"""`zturbo bench-cpu`: the benchmark of this CPU; its options are benchmarks/cpu.py's own."""

from __future__ import annotations

import typer

from zturbo.extras import extra


def run(context: typer.Context) -> None:
    """Measure ONNX Runtime against diffusers on this CPU; `zturbo bench-cpu --help` lists the options."""
    with extra("bench", command="bench-cpu"):
        from benchmarks.cpu import main

        code = main(context.args)
    raise typer.Exit(code)
