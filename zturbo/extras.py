"""Which optional dependencies a command needs, told as a typed error where they are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ZturboError

OURS = ("zturbo", "export", "engine", "runtime", "benchmarks")


@contextmanager
def extra(name: str, *, command: str) -> Iterator[None]:
    """Around a command's late imports: a missing library becomes a ZturboError that names the extra.

    A module of our own that is missing is a fault of ours, and stays a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        raise ZturboError(
            f"zturbo {command}", actual=f"no Python module '{error.name}' here",
            allowed=f"an installation with the extra '{name}'", remedy=f"Run `pip install 'zturbo[{name}]'`.",
        ) from error  # fmt: skip
