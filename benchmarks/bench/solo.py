"""One contender alone: how long a fresh process takes to its first picture, and what memory that needs at the most.

Then, in the last of these processes and with nothing beside it: each part by itself, pictures in batches, the pictures
that are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import PROMPTS, Plan
from benchmarks.bench.process import Child, ContenderFailed
from benchmarks.memory import lowest
from benchmarks.pairs import Summary

Free = Callable[[], int]


class Alone:
    """What one contender does by itself. source: the model's folder. folder: for pictures and logs.

    free: the GPU's free bytes, None without one.
    """

    def __init__(self, spec: Spec, plan: Plan, source: Path, folder: Path, free: Free | None) -> None:
        self.spec, self.plan, self.source, self.folder, self.free = spec, plan, source, folder, free
        self.log = folder / f"{slug(spec.name)}.log"

    def measure(self) -> dict[str, Any]:
        """Everything; what fails in the middle is told where it belongs. Raises ContenderFailed where it cannot run."""
        forget_files([self.plan.bundle, self.source])
        count = 1 if self.spec.of else self.plan.starts
        starts = [self._start() for _ in range(count - 1)]
        with Child(self.spec, self.log) as child:
            starts.append(self._watched(lambda: self._first(child)))
            found = summed(starts)
            if not found.get("gpu_peak_bytes"):
                found["gpu_peak_bytes"] = None
            steps = self.plan.steps[0]
            for name, ask in {
                "parts": lambda: self._parts(child),
                "busy": lambda: child.ask("busy", prompt=PROMPTS[0], steps=steps, limit_s=self.plan.first_s),
                "pictures": lambda: self._pictures(child),
                "batches": lambda: self._batches(child),
            }.items():
                found[name] = _or_reason(ask)
        return found

    def _start(self) -> dict[str, Any]:
        """A fresh process that paints two pictures and ends."""

        def once() -> dict[str, Any]:
            with Child(self.spec, self.log) as child:
                return self._first(child)

        return self._watched(once)

    def _first(self, child: Child) -> dict[str, Any]:
        """From the start of the process to its first picture, and the second one after it."""
        steps, opened = self.plan.steps[0], child.open(self.plan)
        ready_s = time.perf_counter() - child.born
        first = child.paint(steps, self.plan.first_s)
        cold_s = time.perf_counter() - child.born
        second = child.paint(steps, self.plan.first_s)  # a compiler may meet another shape once more
        return {
            "cold_s": cold_s, "ready_s": ready_s, "open_s": opened.pop("took_s"), "first_s": first["seconds"],
            "second_s": second["seconds"], "facts": opened,
            "host_peak_bytes": child.ask("memory", limit_s=self.plan.picture_s)["peak_bytes"],
        }  # fmt: skip

    def _watched(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same, with what it took of the GPU's memory at the most, a CUDA context and all that libraries keep."""
        if self.free is None:
            return work()
        taken, _, found = lowest(self.free, work)
        return {**found, "gpu_peak_bytes": taken}

    def _parts(self, child: Child) -> dict[str, Any]:
        found = child.ask("parts", repeats=self.plan.parts, limit_s=self.plan.first_s)
        return {
            "clock": found["clock"],
            "ms": {name: dataclasses.asdict(Summary.of(times)) for name, times in found["parts"].items()},
        }

    def _pictures(self, child: Child) -> dict[str, Any]:
        """Those that are compared: one file, (count, H, W, 3) uint8."""
        if not self.plan.pictures:
            return {}
        pictures = []
        for seed, prompt in enumerate(PROMPTS[: self.plan.pictures]):
            path = self.folder / f"{slug(self.spec.name)}-{seed}.npy"
            child.paint(self.plan.steps[0], self.plan.first_s, prompt=prompt, seed=seed, out=str(path))
            pictures.append(np.load(path)[0])
            path.unlink()
        whole = self.folder / f"{slug(self.spec.name)}.npy"
        np.save(whole, np.stack(pictures))
        return {"file": str(whole)}

    def _batches(self, child: Child) -> dict[str, Any]:
        """{pictures at a time: images_per_s and its spread, or the reason why not}, one after another."""
        steps, found = self.plan.batch_steps, {}
        if self.spec.of:
            return {}
        for count in self.plan.batches:
            if count > 1 and self.spec.settings.get("compile") and not self.plan.compile_batches:
                found[str(count)] = {"reason": "compiles anew for each batch; --compile-batches has it do so"}
                continue
            found[str(count)] = _or_reason(partial(self._batch, child, count, steps))
            if "reason" in found[str(count)]:
                break
        return {"steps": steps, "by_count": found}

    def _batch(self, child: Child, count: int, steps: int) -> dict[str, Any]:
        limit_s = self.plan.first_s + count * self.plan.picture_s
        rounds = range(1 + self.plan.batch_turns)
        seconds = [child.paint(steps, limit_s, count=count)["seconds"] for _ in rounds][1:]
        return {"images_per_s": dataclasses.asdict(Summary.of([count / one for one in seconds]))}


def summed(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several fresh starts as one: medians of the times, the most of the memory.

    The first start is told apart, as `coldest`: it alone compiles, and reads what the system has not read yet.
    """
    later = starts[1:] or starts
    times = ("cold_s", "ready_s", "open_s", "first_s", "second_s")
    found: dict[str, Any] = {name: float(np.median([one[name] for one in later])) for name in times}
    found["coldest"] = {name: starts[0][name] for name in times}
    for name in ("host_peak_bytes", "gpu_peak_bytes"):
        found[name] = max((one.get(name) or 0 for one in starts), default=0)
    return {**found, "starts": len(starts), "facts": starts[-1]["facts"]}


def forget_files(folders: Sequence[Path]) -> None:
    """Have the system forget what it read of these folders' files, where it can (Linux): a start reads the disk then.

    Files that another process has mapped stay.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in [path for folder in folders for path in folder.rglob("*") if path.is_file()]:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def slug(name: str) -> str:
    """A contender's name in a file's."""
    return name.replace(" ", "-").replace(".", "-")


def _or_reason(ask: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    try:
        return dict(ask())
    except ContenderFailed as error:
        return {"reason": error.short}
