"""`zturbo judge`: how often a model paints what it is asked for, by the judge.py that lies in the model's folder."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import OptionInvalid
from zturbo.extras import extra

JUDGE = "judge.py"


def run(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="The model's folder; its judge.py is run.")] = Path("models/emoji"),
) -> None:
    """Report how often a model paints what it is asked for; other options are the judge's own (--count, --steps …)."""
    script = model / JUDGE
    if not script.is_file():
        raise OptionInvalid(
            f"model '{model}'", actual=f"no {JUDGE} there", allowed="a folder that has one, such as models/emoji",
            remedy="Run it from the checkout, or name the folder with `--model`.",
        )  # fmt: skip
    sys.argv = [str(script), *context.args]
    with extra("export", command="judge"):
        runpy.run_path(str(script), run_name="__main__")
