"""The real scheduler run on unit vectors: what each state of its loop holds of the first one, each output, each noise.

Nothing of a scheduler is written again here: its own step() and add_noise() are called. A scheduler is copied before
it runs, so that one set_timesteps() serves the loop from every begin. Does not know rows of a table.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]
NO_OPTIONS: Mapping[str, Any] = {}
MEMORIES = ("model_outputs", "derivatives")
"""Where schedulers keep what later steps read."""
ONE = torch.ones((1, 1, 1, 1), dtype=torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Loops of one length L on unit vectors: a vector holds the coefficients over (x0, every e, every noise).

    states: x before each evaluation and after the last, (B, L + 1, D). memory: the m that each evaluation stored,
    (B, L, D). scales, timesteps: (B, L). noised: what add_noise makes of an image and of noise for each state,
    (B, L + 1, 2); for the last, the image itself.
    """

    states: Vector
    memory: Vector
    scales: Vector
    timesteps: Vector
    noised: Vector

    @property
    def count(self) -> int:
        """Model evaluations."""
        return int(self.scales.shape[1])


def prepared(scheduler: Any, steps: int) -> Any:
    """A copy of the scheduler with its timesteps set, as the pipelines of its models do it."""
    made = snapshot(scheduler)
    _set_timesteps(made, steps)
    if hasattr(made, "get_lms_coefficient"):
        _quicken_integrals(made)
    if hasattr(made, "_sigma_to_alpha_sigma_t"):
        _remember_alphas(made)
    return made


def _set_timesteps(scheduler: Any, steps: int) -> None:
    """As pipelines do it: those of a flow give its sigmas before the shift, from 1 to 1/N.

    Of the number alone such a scheduler makes sigmas that are shifted already, and shifts them again.
    """
    known = inspect.signature(scheduler.set_timesteps).parameters
    if "sigmas" in known and type(scheduler).__name__.startswith("FlowMatch"):
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)


def _remember_alphas(scheduler: Any) -> None:
    """Most of a multistep solver's time goes into α and σ of a few sigmas; they are what its own method said before."""
    convert, known = scheduler._sigma_to_alpha_sigma_t, dict[tuple[float, torch.dtype], Any]()  # noqa: SLF001

    def remembered(sigma: Any) -> Any:
        if not isinstance(sigma, torch.Tensor) or sigma.ndim:
            return convert(sigma)
        key = sigma.item(), sigma.dtype
        if key not in known:
            known[key] = convert(sigma)
        return known[key]

    scheduler._sigma_to_alpha_sigma_t = remembered  # noqa: SLF001


def _quicken_integrals(scheduler: Any) -> None:
    """LMS integrates polynomials over tensors of one number, at 3 ms a step: its own method is given floats instead."""
    integrate = type(scheduler).get_lms_coefficient
    floats = SimpleNamespace(sigmas=scheduler.sigmas.tolist())
    scheduler.get_lms_coefficient = cache(lambda order, t, current: integrate(floats, order, t, current))


def snapshot(scheduler: Any) -> Any:
    """A copy that can run without changing the original: the lists of a multistep solver are its own."""
    made = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(made, name, list(value))
    return made


@torch.inference_mode()
def probe(
    ready: Any,
    *,
    begin: int = 0,
    count: int | None = None,
    options: Mapping[str, Any] = NO_OPTIONS,
    noised: bool = True,
) -> Probe:
    """Run a prepared scheduler's loop from evaluation `begin` on, for `count` evaluations or to its end."""
    scheduler = snapshot(ready)
    begin_at(scheduler, begin)
    timesteps = scheduler.timesteps[begin:][:count]
    total = len(timesteps)
    units = torch.eye(1 + 2 * total, dtype=torch.float64)[:, None, None, None, :]
    after = scheduler.timesteps[begin + 1 :]
    x, j = units[0], 0
    states, memory, scales = [x], [], []
    known = [add_noise(scheduler, timesteps[0])] if noised else []
    with replaced_noise(scheduler, lambda: units[1 + total + j]), in_float64(scheduler):
        for j, t in enumerate(timesteps):
            scales.append(_scale(scheduler, t))
            x = scheduler.step(units[1 + j], t, x, return_dict=False, **options)[0].double()
            memory.append(_stored_output(scheduler, units[1 + j]))
            states.append(x)
            if noised:
                known.append(add_noise(scheduler, after[j]) if j < len(after) else (1.0, 0.0))
    rows = _vectors(states), _vectors(memory), np.array(scales), timesteps.double().numpy(), np.array(known, np.float64)
    return Probe(*(row[None] for row in rows))


def together(runs: Sequence[Probe]) -> Probe:
    """Loops of one length as one."""
    names = [field.name for field in fields(Probe)]
    return Probe(*(np.concatenate([getattr(run, name) for run in runs]) for name in names))


def begin_at(scheduler: Any, begin: int) -> None:
    """As pipelines do; without it a timestep that occurs twice (karras) is looked up and misplaced."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)


def add_noise(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """(u, v): the scheduler's own noised image at a timestep is u·image + v·noise; (0, 0) where it knows none."""
    image, noise = torch.eye(2, dtype=torch.float64)[:, None, None, None, :]
    at = timestep.reshape(1)
    if hasattr(scheduler, "add_noise"):
        made = scheduler.add_noise(image, noise, at)
    elif hasattr(scheduler, "scale_noise"):
        made = scheduler.scale_noise(image, at, noise)
    else:
        return 0.0, 0.0
    u, v = made.flatten().tolist()
    return u, v


def _scale(scheduler: Any, t: torch.Tensor) -> float:
    """What scale_model_input multiplies by."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(ONE, t))


def _stored_output(scheduler: Any, e: torch.Tensor) -> torch.Tensor:
    """What the scheduler keeps of this evaluation: its converted output, LMS its derivative, or the output itself."""
    kept = [one for name in MEMORIES for one in getattr(scheduler, name, ()) if one is not None]
    return kept[-1] if kept else e


def _vectors(tensors: list[torch.Tensor]) -> Vector:
    return torch.stack([tensor.flatten().double() for tensor in tensors]).numpy()


@contextlib.contextmanager
def replaced_noise(scheduler: Any, draw: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Within the block the scheduler draws its noise from `draw`, in the order it asks.

    DPMSolverSDE asks for the increments of a Brownian path over intervals that overlap; see Increments.
    """
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = Increments(draw)
    if original is None:
        yield
        return

    def randn_tensor(*_: object, dtype: torch.dtype | None = None, **__: object) -> torch.Tensor:
        return draw().to(dtype)

    module.randn_tensor = randn_tensor  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.randn_tensor = original  # type: ignore[attr-defined]


@contextlib.contextmanager
def in_float64(scheduler: Any) -> Iterator[None]:
    """Within the block what the scheduler's module calls torch.float32 is float64.

    Some classes take their sample in float32 whatever they are given. Without their rounding a step is linear to the
    last bits, and an old output's share that is small beside the sample is told from it.
    """
    module = sys.modules[type(scheduler).__module__]
    original = module.torch
    module.torch = WIDE  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.torch = original  # type: ignore[attr-defined]


def _wide() -> ModuleType:
    made = ModuleType("torch")
    vars(made).update({**vars(torch), "float32": torch.float64})
    return made


WIDE = _wide()


class Increments:
    """A Brownian path made of independent draws: one for each piece of it that no earlier question covered.

    DPMSolverSDE asks in each step first for (σ, middle), then for (σ, next σ), which holds the first. The path's
    increment over both is the sum of the two pieces', so the second draw is that of (middle, next σ) alone.
    """

    def __init__(self, draw: Callable[[], torch.Tensor]) -> None:
        self._draw = draw
        self._begin: float | None = None
        self._known: tuple[float, torch.Tensor] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        """The increment over the interval, divided by the root of its length: standard normal."""
        begin, end = float(sigma), float(sigma_next)
        if self._known is None or self._begin != begin:
            self._begin, self._known = begin, (end, self._draw())
            return self._known[1]
        middle, first = self._known
        self._known = None
        whole, rest = begin - end, middle - end
        both: torch.Tensor = (first * (begin - middle) ** 0.5 + self._draw() * rest**0.5) / whole**0.5
        return both
