"""Stable Diffusion 1.5's exact architecture with random weights, as a folder in diffusers layout.

    python -m benchmarks.random_sd15 OUT [--seed 0] [--dtype fp16]

The folder alone, for what needs no bundle; `zturbo export random:sd15` makes a bundle of it. How the weights are drawn
is told in export/random_models.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import OutputError, ZturboError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code: 0, or 2 where something is in the way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_sd15", description="SD 1.5 of random weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="of the files")
    options = parser.parse_args(arguments)
    try:
        save(options.out, seed=options.seed, dtype=options.dtype)
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def save(folder: Path, *, seed: int, dtype: str) -> None:
    """Write the model, whole or not at all; the same weights for the same seed. Raises OutputError."""
    if folder.exists():
        raise OutputError(
            str(folder), actual="something is there", allowed="a new folder", remedy="Remove it, or name another."
        )
    import torch

    from export.kept import kept_folder
    from export.random_models import write

    weights = getattr(torch, f"float{dtype[2:]}")
    kept_folder(folder, lambda place: write(place, "sd15", seed=seed, dtype=weights))


if __name__ == "__main__":
    sys.exit(main())
