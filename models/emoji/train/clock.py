"""A training run's clock, learning rate and log: runs are bounded by minutes, not by steps."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Clock:
    """How far a run of `minutes` has come; the learning rate follows it."""

    def __init__(self, minutes: float, peak_rate: float, warmup_steps: int) -> None:
        self.started = time.monotonic()
        self.minutes = minutes
        self.peak_rate = peak_rate
        self.warmup_steps = warmup_steps

    @property
    def spent_minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent_minutes / self.minutes)

    def rate(self, step: int) -> float:
        """Linear warm-up by steps, then a cosine to a hundredth of the peak by wall-clock."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.fraction)))


class Average:
    """An exponential moving average of a module's weights, in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([*self.module.parameters()], [*module.parameters()], 1 - decay)


class Log:
    """Means of named losses, appended to a JSON-lines file and printed."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self.clock = path, clock
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, **losses: Tensor) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += 1

    def write(self, step: int) -> None:
        entry: dict[str, float] = {"step": step, "minutes": round(self.clock.spent_minutes, 3)}
        entry |= {name: round(float(total) / self.count, 6) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
