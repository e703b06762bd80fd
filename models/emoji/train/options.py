"""The options that both trainers take, and the start that both make of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def trainer_parser(description: str | None, *, minutes: float, rate: float) -> argparse.ArgumentParser:
    """A parser with what every trainer takes. minutes, rate: the defaults of the run's length and learning rate."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--smoke", action="store_true", help="four tiny steps, to see that it runs")
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Seed torch and let it take its fastest fp32 forms."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(options.seed)
