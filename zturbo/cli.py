"""The `zturbo` command: its list of commands, and how their errors end.

Exit codes: 0 done · 2 the caller or the files are wrong (any ZturboError) · 130 interrupted · 1, with a traceback,
anything that we did not foresee, and without one what `build --verify` and `doctor --selftest` found not to be sound ·
3 `doctor --selftest` found nothing wrong but could not test everything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engine.errors import ZturboError
from zturbo.commands.bench import run as bench
from zturbo.commands.build import run as build
from zturbo.commands.demo import run as demo
from zturbo.commands.doctor import run as doctor
from zturbo.commands.export import run as export
from zturbo.commands.generate import run as generate
from zturbo.commands.inspect import run as inspect
from zturbo.commands.judge import run as judge

INVALID, INTERRUPTED = 2, 130
COMMANDS: dict[str, Callable[..., None]] = {
    "export": export,
    "build": build,
    "generate": generate,
    "inspect": inspect,
    "doctor": doctor,
    "demo": demo,
    "judge": judge,
    "bench": bench,
}
"""In the order that `zturbo --help` lists them."""
_FOREIGN = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}
HANDED_ON: dict[str, dict[str, Any]] = {"judge": _FOREIGN, "bench": {**_FOREIGN, "add_help_option": False}}
"""Commands that hand options on to a program with a parser of its own."""


class Commands(TyperGroup):
    """The group of all commands; the one place where an error becomes an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; a ZturboError is told on stderr in one message, without a traceback."""
        try:
            return super().invoke(ctx)
        except ZturboError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(INVALID) from error
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)  # noqa: T201
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    help="Compile latent text-to-image diffusion models to TensorRT, and run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zturbo {version('zturbo')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Compile latent text-to-image diffusion models to TensorRT, and run them."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of diffusers and transformers would tear ours
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


for _name, _run in COMMANDS.items():
    app.command(name=_name, **HANDED_ON.get(_name, {}))(_run)
