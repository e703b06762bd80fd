"""Contenders side by side, a picture each in turn: what moves the whole machine moves all of them alike.

Where not all fit in memory together they take turns in groups.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import Child, ContenderFailed
from benchmarks.bench.solo import slug
from benchmarks.pairs import Summary
from engine.machine import usable_cores

SETTLE_S = 0.05
"""Between two turns: longer than the threads of the one before spin."""
MOST_AT_ONCE = 8
Painted = dict[str, Any]
Turns = dict[int, list[Painted]]
"""By step count."""


def groups(names: Sequence[str], sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Names in as few consecutive groups as fit in `room` bytes; a group has one member at least."""
    found: list[list[str]] = []
    left = 0
    for name in names:
        if not found or sizes.get(name, 0) > left:
            found.append([])
            left = room
        found[-1].append(name)
        left -= sizes.get(name, 0)
    return found


def take_turns(
    specs: Sequence[Spec],
    plan: Plan,
    folder: Path,
    *,
    on_round: Callable[[], None],
    on_open: Callable[[list[int]], None],
) -> tuple[dict[str, Turns], dict[str, str]]:
    """{contender: its turns}, and {contender: why it fell out}: all alive at once, who begins moves on by one a round.

    on_open: told their process ids when all painted once.
    """
    turns: dict[str, Turns] = {spec.name: {steps: [] for steps in plan.steps} for spec in specs}
    fallen: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        alive = _opened(specs, plan, folder, fallen, stack)
        on_open([child.pid for child in alive.values()])
        for index in range(plan.turns):
            for name in rotated([name for name in alive if name not in fallen], index):
                with _noting(name, fallen):
                    for steps in plan.steps:
                        time.sleep(SETTLE_S)
                        turns[name][steps].append(alive[name].paint(steps, plan.picture_s))
            on_round()
    return {name: of for name, of in turns.items() if name not in fallen}, fallen


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names, begun at another one each time."""
    start = by % max(len(names), 1)
    return [*names[start:], *names[:start]]


def _opened(
    specs: Sequence[Spec], plan: Plan, folder: Path, fallen: dict[str, str], stack: contextlib.ExitStack
) -> dict[str, Child]:
    """The contenders' processes, each loaded and warmed up; several at a time where there are cores for that."""

    def one(spec: Spec) -> Child | None:
        with _noting(spec.name, fallen):
            child = stack.enter_context(Child(spec, folder / f"{slug(spec.name)}.log"))
            child.open(plan)
            for steps in plan.steps * plan.warmup:
                child.paint(steps, plan.first_s)
            return child
        return None

    with ThreadPoolExecutor(max(1, min(MOST_AT_ONCE, usable_cores() // 2))) as pool:
        found = dict(zip([spec.name for spec in specs], pool.map(one, specs), strict=True))
    return {name: child for name, child in found.items() if child is not None}


@contextlib.contextmanager
def _noting(name: str, fallen: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except ContenderFailed as error:
        fallen[name] = error.short


def speed_of(turns: Sequence[Painted]) -> dict[str, Any]:
    """Pictures of one step count: seconds in all and by stage, the device's own milliseconds by stage, of each step.

    loop_over_device: wall time of the loop over the sum of what its launches took by the device's own clock.
    """
    stages = turns[0]["stages"]
    found: dict[str, Any] = {
        "seconds": _summary([turn["seconds"] for turn in turns]),
        "stages": {name: _summary([turn["stages"][name] for turn in turns]) for name in stages},
        "all_seconds": [turn["seconds"] for turn in turns],
    }
    if turns[0]["device_ms"]:
        names = turns[0]["device_ms"]
        found["device_ms"] = {name: _summary([turn["device_ms"][name] for turn in turns]) for name in names}
        found["steps_ms"] = _summary([step for turn in turns for step in turn["steps_ms"]])
        found["loop_over_device"] = _summary([1e3 * t["stages"]["loop"] / t["device_ms"]["loop"] for t in turns])
    return found


def ratios(turns: Mapping[str, Turns], of: str, to: str, steps: int) -> dict[str, float] | None:
    """Seconds of `to` over those of `of`, round by round: how many times as fast `of` is."""
    if of not in turns or to not in turns:
        return None
    pairs = zip(turns[of][steps], turns[to][steps], strict=False)
    found = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    return _summary(found) if found else None


def _summary(values: Sequence[float]) -> dict[str, float]:
    return dataclasses.asdict(Summary.of(values))
