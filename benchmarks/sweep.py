"""The settings that a contender is fastest with, one axis after the other. Knows no contender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.process import ContenderProcess
from benchmarks.work import Settings, Work

ENVIRONMENT = {"omp_wait_policy": "OMP_WAIT_POLICY"}
"""Settings that a process takes from its environment; `default` leaves the variable out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A contender before it runs. factory: `module:class`. axes: alternatives to try, each a part of the settings.

    The first alternative of every axis is where the sweep begins.
    """

    name: str
    factory: str
    axes: tuple[tuple[Settings, ...], ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings that were tried, and the best time of a picture with them."""

    settings: Settings
    seconds: float


def start(entrant: Entrant, settings: Settings, work: Work) -> ContenderProcess:
    """A fresh process of the contender with these settings; the caller closes it."""
    words = {ENVIRONMENT[key]: str(value) for key, value in settings.items() if key in ENVIRONMENT}
    # OMP_NUM_THREADS would cap what a contender may ask for.
    environment = {"OMP_NUM_THREADS": None, **{k: None if v == "default" else v for k, v in words.items()}}
    process = ContenderProcess(entrant.factory, work, environment)
    try:
        process.configure(settings)
    except BaseException:
        process.close()
        raise
    return process


def best_settings(
    entrant: Entrant, work: Work, *, repeats: int, on_trial: Callable[[Entrant, Trial], None]
) -> tuple[Settings, list[Trial]]:
    """Walk the axes in order, keep each one's fastest alternative; returns the settings and everything tried.

    A trial's time is the best of `repeats` pictures after one to warm up.
    """
    chosen = {key: value for axis in entrant.axes for key, value in axis[0].items()}
    trials: list[Trial] = []
    for axis in entrant.axes:
        if len(axis) == 1:
            continue
        wanted = [{**chosen, **part} for part in axis]
        for settings in wanted:
            if settings not in [trial.settings for trial in trials]:
                trials.append(Trial(settings, _seconds(entrant, settings, work, repeats)))
                on_trial(entrant, trials[-1])
        found = [trial for trial in trials if trial.settings in wanted]
        chosen = dict(min(found, key=lambda trial: trial.seconds).settings)
    return chosen, trials


def _seconds(entrant: Entrant, settings: Settings, work: Work, repeats: int) -> float:
    with start(entrant, settings, work) as process:
        process.paint()
        return min(process.paint().seconds for _ in range(repeats))


def thread_counts(cores: int) -> tuple[int, ...]:
    """All cores first, then fewer: each count up to 4, above that halves."""
    counts = set(range(1, min(cores, 4) + 1))
    while cores > 4:
        counts.add(cores)
        cores //= 2
    return tuple(sorted(counts, reverse=True))
