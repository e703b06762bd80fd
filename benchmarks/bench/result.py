"""From what was measured to what is told: fractions of the limit, comparisons, one JSON object.

Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.contenders import Spec
from benchmarks.bench.counts import SIZES, Count
from benchmarks.bench.turns import Turns, ratios, speed_of
from engine.binding import Precision
from engine.errors import OptionInvalid

VERSION = 1
BENCHMARK = "zturbo bench"
Result = dict[str, Any]
Counts = Mapping[Precision, Mapping[str, Count]]
TOLD = ("OMP_WAIT_POLICY",)
"""Variables of a contender's process that are settings of it."""
WHOLE = {"denoiser": "prologue"}
"""What torch computes in every step along with a graph: what was hoisted out of it."""
MAKERS = ("diffusers", "torch.compile", "torch.compile max-autotune", "pytorch")
"""Contenders of torch, whose graphs are those that fp16 is exported in, whatever they compute in."""


def contender_of(spec: Spec, alone: Mapping[str, Any] | None, reason: str | None) -> Result:
    """What is told of a contender before anything that concerns several. alone: of benchmarks/bench/solo.py."""
    settings = {
        **spec.settings,
        **{name: spec.environment[name] or "default" for name in TOLD if name in spec.environment},
    }
    found: Result = {"of": spec.of, "by": spec.by, "settings": settings, "runs": alone is not None, "reason": reason}
    if alone is None:
        return found
    facts = dict(alone["facts"])
    times = ("cold_s", "ready_s", "open_s", "first_s", "second_s")
    found |= {name: facts.pop(name, None) for name in ("device", "precision", "weights_bytes", "build", "versions")}
    found |= {"facts": facts, "start": {**{name: alone[name] for name in times}, "count": alone["starts"]}}
    found |= {"coldest_start": alone["coldest"], "host_peak_bytes": alone["host_peak_bytes"]}
    found |= {"gpu_peak_bytes": alone["gpu_peak_bytes"], "batches": alone["batches"], "parts": alone["parts"]}
    if spec.settings.get("compile"):
        found["compile_s"] = max(0.0, alone["coldest"]["first_s"] - alone["second_s"])
    if alone["busy"].get("kernels_ms"):
        found["kernels_ms"] = alone["busy"]["kernels_ms"]
        found["picture_over_kernels"] = 1e3 * alone["second_s"] / alone["busy"]["kernels_ms"]
    return found


def add_turns(contenders: Mapping[str, Result], turns: Mapping[str, Turns], steps: Sequence[int], first: str) -> None:
    """Speed by step count; times_as_fast: against `first` and each against what it is a variant of."""
    for name, of in turns.items():
        one = contenders[name]
        one["speed"] = {str(count): speed_of(of[count]) for count in steps if of[count]}
        against = {other: ratios(turns, name, other, steps[0]) for other in dict.fromkeys((first, one["of"])) if other}
        one["times_as_fast_as"] = {other: told for other, told in against.items() if told and other != name}


def add_limits(contenders: Mapping[str, Result], found: Counts, ceilings: Result, steps: int) -> None:
    """Of each part that was timed: what it does, the fewest milliseconds at the ceilings, and the fraction reached."""
    for name, one in contenders.items():
        parts = one.get("parts", {}).get("ms")
        precision = one.get("precision")
        rate = ceilings.get("matmul", {}).get(precision)
        if not parts or rate is None or not ceilings.get("copy"):
            continue
        counted = counted_for(name, str(precision), found)
        one["limits"] = {
            part: _limit(counted[part], str(precision), times["median"], rate["tflops"], ceilings["copy"]["gb_s"])
            for part, times in parts.items()
            if part in counted and counted[part].elements
        }
        add_whole(one, steps)


def add_whole(one: Result, steps: int) -> None:
    """The limit of a picture: what its parts take at best, the loop's as often as there are steps.

    Its bytes are those of all launches; weights that stay in a cache from step to step would make it less.
    """
    parts, speed = one["limits"], one.get("speed", {}).get(str(steps))
    if speed is None or not {"denoiser", "decoder"} <= parts.keys():
        return
    times = {name: steps if name in ("denoiser", "solver") else 1 for name in parts if name != "step"}
    sums = {key: sum(count * parts[name][key] for name, count in times.items()) for key in ("gflop", "mib", "floor_ms")}
    ms = 1e3 * speed["seconds"]["median"]
    bound = parts["denoiser"]["bound"]
    one["limits"]["picture"] = {**sums, "ms": ms, "fraction": sums["floor_ms"] / ms, "bound": bound}


def counted_for(name: str, precision: str, found: Counts) -> dict[str, Count]:
    """{part: count}. torch's denoiser does what its prologue does too, and has the form that fp16 graphs have."""
    base = " ".join(word for word in name.split() if word not in ("fp16", "fp32", "fused", "unfused"))
    torch = base in MAKERS
    wanted: Precision = "fp32" if precision == "fp32" and not torch else "fp16"
    counted = dict(found.get(wanted) or next(iter(found.values()), {}))
    if torch:
        for whole, part in WHOLE.items():
            if part in counted:
                counted[whole] += counted.pop(part)
    if "denoiser" in counted and "solver" in counted:
        counted["step"] = counted["denoiser"] + counted["solver"]
    return counted


def _limit(count: Count, precision: str, ms: float, tflops: float, gb_s: float) -> Result:
    floor, bound = count.floor(precision, tflops, gb_s)
    rates = {"tflops": count.flops / ms / 1e9, "gb_s": count.elements * SIZES[precision] / ms / 1e6}
    return {**count.told(precision), "ms": ms, "floor_ms": floor, "fraction": floor / ms, "bound": bound, **rates}


def comparisons(contenders: Mapping[str, Result], steps: int) -> list[Result]:
    """Every variant beside what it is one of: time, weights, memory, FLIP of the two against the reference."""
    found = []
    for name, one in contenders.items():
        other = contenders.get(one["of"])
        if not one["of"] or other is None or not (one["runs"] and other["runs"]):
            continue
        pair = {one["of"]: other, name: one}
        found.append({
            "by": one["by"], "names": list(pair),
            "seconds": [_median(each, steps) for each in pair.values()],
            "weights_bytes": [each["weights_bytes"] for each in pair.values()],
            "host_peak_bytes": [each["host_peak_bytes"] for each in pair.values()],
            "gpu_peak_bytes": [each["gpu_peak_bytes"] for each in pair.values()],
            "flip": [each.get("quality", {}).get("flip", {}).get("median") for each in pair.values()],
        })  # fmt: skip
    return found


def _median(one: Result, steps: int) -> float | None:
    found = one.get("speed", {}).get(str(steps))
    return None if found is None else float(found["seconds"]["median"])


def read_result(path: Path) -> Result:
    """A result that this benchmark wrote. Raises OptionInvalid."""
    try:
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        problem = None if found.get("benchmark") == BENCHMARK else "of another benchmark"
    except (OSError, ValueError, AttributeError) as error:
        problem = f"unreadable ({error})"
    if problem is None and found.get("version") != VERSION:
        problem = f"of version {found.get('version')}"
    if problem is not None:
        raise OptionInvalid(
            f"bench, {path}", actual=f"a file {problem}", allowed=f"a result of `zturbo bench`, version {VERSION}",
            remedy="Run `zturbo bench` again.",
        )  # fmt: skip
    return found
