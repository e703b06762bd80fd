"""A diffusers scheduler as a table of coefficients, found by running the real scheduler on basis vectors.

Every linear scheduler obeys, at model evaluation j with model input s·x and output e,

    m = p·x + q·e;   x' = a·x + d·e + Σ_{k=0..4} b_k·m[-k] + c·noise;   next model input = s·x';   next timestep t

so one table row per evaluation replays it. Row 0 starts the loop: x' = c·noise, its model input and timestep.
Nothing of a scheduler is written again here: its step() is fed unit vectors and the row is read off the result.
Does not know graphs or bundles; the graph that executes a row is export/solver_graph.py.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import SchedulerUnsupported

COLUMNS = ("p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4", "c", "j", "s", "t", "u", "v")
HISTORY = 4
MAX_STEPS = 100
ROWS = 200  # the start row, and up to 199 evaluations: what Heun needs for 100 steps
RESIDUAL = 2e-6  # schedulers compute in float32; a row that explains less is not linear in this form
UNUSED = 1e-9  # less of a unit of noise than this is rounding

PLAIN = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)
DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, **PLAIN}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", PLAIN),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", DPMPP_2M),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {**DPMPP_2M, "use_karras_sigmas": True}),
}
"""Our names: the diffusers class, and the settings that make it the scheduler of that name."""

REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "thresholding": (bool, "dynamic thresholding is not linear in the model's output"),
    "clip_sample": (bool, "clipping the predicted sample is not linear in the model's output"),
    "variance_type": (lambda v: str(v).startswith("learned"), "a learned variance is a second output of the model"),
}
"""Settings, the values of them that are refused, and why."""

Vector = NDArray[np.float64]
Table = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probe:
    """One scheduler run on unit vectors: each vector holds the coefficients over (x0, every e, every noise).

    states: x before each evaluation and after the last, (M + 1, D). memory: the m that each evaluation stored, (M, D).
    """

    states: Vector
    memory: Vector
    scales: Vector
    timesteps: Vector
    init_noise_sigma: float


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of one of our names, over a model's own scheduler_config.

    Raises SchedulerUnsupported where a setting is not linear.
    """
    class_name, settings = SCHEDULERS[name]
    for setting, (refused, reason) in REFUSED.items():
        if refused(config.get(setting)):
            actual = f"{setting}={config[setting]}: {reason}"
            raise _unsupported(name, actual, f"Change {setting} in scheduler_config.json.")
    kind = getattr(diffusers, class_name)
    known = inspect.signature(kind.__init__).parameters
    with refusals(name):
        return kind.from_config({key: value for key, value in {**config, **settings}.items() if key in known})


@contextlib.contextmanager
def refusals(name: str) -> Iterator[None]:
    """What diffusers raises for settings it does not take, as SchedulerUnsupported."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, IndexError, AssertionError) as error:
        raise _unsupported(
            name, f"settings that diffusers refuses ({error})", "Correct scheduler_config.json."
        ) from error


def own_name(config: Mapping[str, Any]) -> str | None:
    """Our name of the scheduler that a model's scheduler_config describes; None where we have no tables for it."""
    for name, (class_name, settings) in reversed(SCHEDULERS.items()):
        if config.get("_class_name") == class_name and all(config.get(k, v) in (v, None) for k, v in settings.items()):
            return name
    return None


def probe(scheduler: Any, steps: int) -> Probe:
    """Run the scheduler's own loop once over `steps` steps with unit vectors as sample, outputs and noise."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):  # else a repeated timestep (karras) is looked up and misplaced
        scheduler.set_begin_index(0)
    timesteps = scheduler.timesteps
    count = len(timesteps)
    units = torch.eye(1 + 2 * count, dtype=torch.float64)[:, None, None, None, :]
    x, j = units[0], 0
    states, memory, scales = [_vector(x)], [], []

    def noise() -> torch.Tensor:
        return units[1 + count + j]

    with replaced_noise(scheduler, noise):
        for j, t in enumerate(timesteps):
            model_input = scheduler.scale_model_input(x, t)
            peak = x.abs().argmax()
            scales.append(float(model_input.flatten()[peak] / x.flatten()[peak]))
            x = scheduler.step(units[1 + j], t, x, return_dict=False)[0].double()
            memory.append(_stored_output(scheduler, units[1 + j]))
            states.append(_vector(x))
    return Probe(
        np.stack(states), np.stack(memory), np.array(scales), timesteps.double().numpy(),
        float(scheduler.init_noise_sigma),
    )  # fmt: skip


def table(name: str, scheduler: Any, steps: int) -> Table:
    """The table of one scheduler at one step count: (evaluations + 1, 13), float32, columns as in COLUMNS.

    Raises SchedulerUnsupported where a step is not of the row's form.
    """
    with refusals(name):
        run = probe(scheduler, steps)
    count = len(run.scales)
    rows = np.zeros((count + 1, len(COLUMNS)))
    at = {column: k for k, column in enumerate(COLUMNS)}
    rows[0, at["c"]] = run.init_noise_sigma
    rows[:-1, at["s"]], rows[:-1, at["t"]] = run.scales, run.timesteps
    rows[-1, at["s"]] = rows[-1, at["u"]] = 1.0
    rows[:-1, at["u"]], rows[:-1, at["v"]] = noise_levels(scheduler, steps)
    for j in range(count):
        coefficients = _row(run, j, count)
        if coefficients is None:
            raise _unsupported(name, f"step {j} of {steps} does not fit the row", "Choose another scheduler.")
        for column, value in coefficients.items():
            rows[j + 1, at[column]] = value
    noisy = 1 + np.flatnonzero(rows[1:, at["c"]])
    rows[noisy, at["j"]] = 1 + np.arange(len(noisy))
    return rows.astype(np.float32)


def noise_levels(scheduler: Any, steps: int) -> tuple[Vector, Vector]:
    """What add_noise takes of an image, and of noise, at each timestep."""
    scheduler.set_timesteps(steps)
    units = torch.eye(2)[:, None, None, None, :]
    found = [scheduler.add_noise(units[0], units[1], t[None]).flatten().double().numpy() for t in scheduler.timesteps]
    levels = np.array(found)
    return levels[:, 0], levels[:, 1]


def _row(run: Probe, j: int, count: int) -> dict[str, float] | None:
    """The coefficients of evaluation j with the shortest history that explains it; None where none does."""
    width = run.states.shape[1]
    e, noise = np.eye(width)[1 + j], np.eye(width)[1 + count + j]
    p, q = np.linalg.lstsq(np.stack([run.states[j], e], 1), run.memory[j], rcond=None)[0]
    target = run.states[j + 1]
    for depth in range(min(j, HISTORY) + 1):
        past = [run.memory[j - k] for k in range(depth + 1)]
        basis = np.stack([run.states[j], noise, *past], 1)
        solution = np.linalg.lstsq(basis, target, rcond=None)[0]
        if np.abs(basis @ solution - target).max() <= RESIDUAL * np.abs(target).max():
            a, c, *b = solution.tolist()
            c = c if abs(c) > UNUSED else 0.0  # euler_ancestral draws in its last step too, and takes none of it
            return {"p": p, "q": q, "a": a, "c": c} | {f"b{k}": v for k, v in enumerate(b)}
    return None


def _stored_output(scheduler: Any, e: torch.Tensor) -> Vector:
    """What the scheduler keeps of this evaluation: its converted model output, or the output itself."""
    kept = [output for output in getattr(scheduler, "model_outputs", ()) if output is not None]
    return _vector(kept[-1] if kept else e)


@contextlib.contextmanager
def replaced_noise(scheduler: Any, draw: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Within the block the scheduler's module draws its noise from `draw`, in the order it asks."""
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
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


def _vector(tensor: torch.Tensor) -> Vector:
    return tensor.flatten().double().numpy().copy()


def _unsupported(name: str, actual: str, remedy: str) -> SchedulerUnsupported:
    allowed = "steps that are linear in the sample, the model's outputs and the noise"
    return SchedulerUnsupported(f"scheduler '{name}'", actual=actual, allowed=allowed, remedy=remedy)
