"""Two results beside each other: what became faster or slower, and whether both are of the same work and machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks.bench import rows
from benchmarks.bench.tables import print_table

SAME = ("work", "machine", "versions", "plan")
OWN = ("precision", "settings")
"""Of a contender that both have."""
LIKE = 0.03
"""Medians that differ by less than this, or whose spreads overlap, are called alike."""


def print_comparison(first: Mapping[str, Any], second: Mapping[str, Any], console: Console) -> None:
    """The tables of `compared`, and what differs beside the times."""
    print_table(compared(first, second), console)
    for line in differences(first, second):
        console.print(line, markup=False, highlight=False)


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> rows.Table:
    """Contenders that both have: seconds of a picture, by step count, memory and likeness."""
    lines = []
    for name, one in rows.running(first).items():
        other = rows.running(second).get(name)
        if other is None:
            continue
        for steps, of in one["speed"].items():
            if steps in other["speed"]:
                lines.append(_line(name, steps, (one, of), (other, other["speed"][steps])))
    heads = ["contender", "steps", "A, s", "B, s", "B / A", "", "A, MiB", "B, MiB", "A, dB", "B, dB"]
    return f"A: {first['commit']} of {first['day']}, B: {second['commit']} of {second['day']}", heads, lines


def _line(name: str, steps: str, first: tuple[Any, Any], second: tuple[Any, Any]) -> rows.Row:
    seconds = [of["seconds"] for _, of in (first, second)]
    return [
        name, steps, *[f"{one['median']:.4g}" for one in seconds],
        f"{seconds[1]['median'] / seconds[0]['median']:.3f}", verdict(*seconds),
        *[_memory(one) for one, _ in (first, second)], *[_likeness(one) for one, _ in (first, second)],
    ]  # fmt: skip


def verdict(first: Mapping[str, float], second: Mapping[str, float]) -> str:
    """`faster` or `slower` where the medians differ by more than LIKE and lie outside each other's spread."""
    ratio = second["median"] / first["median"]
    overlap = first["p5"] <= second["median"] <= first["p95"] or second["p5"] <= first["median"] <= second["p95"]
    if overlap or abs(ratio - 1) < LIKE:
        return "alike"
    return "slower" if ratio > 1 else "faster"


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What makes the comparison doubtful: other work, machine or versions; contenders that one result lacks."""
    ours, theirs = rows.running(first), rows.running(second)
    pairs = [
        (f"{name}, {key}", first[name].get(key, "nothing"), second[name].get(key, "nothing"))
        for name in SAME for key in {**first[name], **second[name]}
    ]  # fmt: skip
    pairs.append(("device", first["device"], second["device"]))
    both = [name for name in ours if name in theirs]
    pairs += [(f"{name}, {key}", ours[name].get(key), theirs[name].get(key)) for name in both for key in OWN]
    found = [f"{what}: {one} in A, {other} in B" for what, one, other in pairs if one != other]
    if alone := ours.keys() ^ theirs.keys():
        found.append(f"in one of them alone: {', '.join(sorted(alone))}")
    return found


def _memory(one: Mapping[str, Any]) -> str:
    value = one["gpu_peak_bytes"] or one["host_peak_bytes"]
    return f"{value / rows.MIB:.0f}"


def _likeness(one: Mapping[str, Any]) -> str:
    return rows.decibels(one["quality"]["psnr_db"]["median"]) if "quality" in one else rows.NONE
