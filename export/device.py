"""Where torch computes during an export: the CPU, or a GPU for large models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.errors import OptionInvalid


def check_device(device: str) -> None:
    """Raise OptionInvalid for what is no device, or none that torch can use here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device)
    if match is None or (device != "cpu" and int(match[1] or 0) >= count):
        gpus = f", cuda, cuda:0 to cuda:{count - 1}" if count else " (torch can use no GPU here)"
        raise OptionInvalid("device", actual=repr(device), allowed=f"cpu{gpus}", remedy="Leave it out for the CPU.")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; one without any computes on the CPU."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextmanager
def strict() -> Iterator[None]:
    """Within the block float32 is float32 on a GPU: torch lets convolutions round to TF32's ten bits by default."""
    places: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            place.allow_tf32 = value
