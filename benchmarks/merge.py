"""Results of one lease of a GPU put together: ratios between contenders, and what was asked beside what was found.

    python -m benchmarks.merge out/emoji.json out/emoji-*.json --ratio 1.05
    python -m benchmarks.merge out/sd15.json out/sd15-*.json --ratio 1.02 --build-seconds 480

Reads what benchmarks.loop, .memory, .with_torch, .gpu and `zturbo build --json` wrote; imports no backend. What was
asked and not measured counts as not met; results of different work are refused. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from engine.errors import OptionInvalid, ZturboError

Result = Mapping[str, Any]
PARITY_DB, SPREAD_MIB = 40.0, 32.0
SAME = ("bundle", "width", "height", "size", "precision", "steps", "gpu")
"""What results that are compared must agree on, where they tell it."""
OPTIONAL = ("cycles", "psnr")
"""What need not be asked: random weights paint nothing that is worth comparing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge and print; returns the exit code: 0, 1 where something asked was not met, or 2 where it failed."""
    options = _parser().parse_args(arguments)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    try:
        merged = merge(
            results, ratio=options.ratio, build_seconds=options.build_seconds, without=options.without,
        )  # fmt: skip
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    table = Table("asked", "found", "allowed", "met")
    for row in merged["asked"]:
        found = "not measured" if row["found"] is None else f"{row['found']:.4g}"
        table.add_row(row["what"], found, f"{row['allowed']:.4g}", "yes" if row["met"] else "NO")
    Console().print(table)
    finish(merged, options.out)
    return 0 if all(row["met"] for row in merged["asked"]) else 1


def merge(
    results: Sequence[Result], *, ratio: float, build_seconds: float | None = None, without: Collection[str] = ()
) -> dict[str, Any]:
    """All results by kind, what follows from several of them, and what was asked. Raises OptionInvalid.

    without: of OPTIONAL, what was not asked.
    """
    kinds = ("loop", "torch", "memory-cycles", "gpu-compare")
    loop, torch, cycles, compared = (_one(kind, [r for r in results if r.get("benchmark") == kind]) for kind in kinds)
    build = _one("build", [one for one in results if "plans" in one and "benchmark" not in one])
    peaks = _peaks(results)
    asked = [
        *_ratios(loop, ratio),
        *([_at_most("seconds of the build", _get(build, "seconds"), build_seconds)] if build_seconds else []),
    ]
    if "cycles" not in without:
        asked.append(_at_most("spread of free memory over cycles, MiB", _get(cycles, "spread_mib"), SPREAD_MIB))
    if "psnr" not in without:
        asked.append(_at_least("median PSNR, dB", _get(compared, "median_psnr_db"), PARITY_DB))
    told = {name: value for name, value in (build or {}).items() if name != "folder"}  # a path of the machine's
    found = {"loop": loop, "torch": torch, "cycles": cycles, "compare": compared, "build": told, "peaks": peaks}
    return {
        "benchmark": "gpu", "asked": asked, "speed": speed(loop, torch), "peak_mib": peak_memory(peaks),
        **{name: value for name, value in found.items() if value},
    }  # fmt: skip


def speed(loop: Result | None, torch: Result | None) -> dict[str, Any]:
    """{mode: {forward, loop}}: torch's median milliseconds over ours, for the denoiser alone and a step of the loop.

    Both of pictures of as many steps. Ours is without what the prologue makes once a picture, which is told beside.
    Raises OptionInvalid where the two are not of the same work.
    """
    if loop is None or torch is None:
        return {}
    _check_same("loop and torch", [loop, torch])
    graphs, steps = loop["graphs_ms"], str(torch["steps"])
    if steps not in loop["captured"]:
        raise _refused("loop and torch", f"pictures of {', '.join(loop['captured'])} steps and of {steps}")
    step = loop["captured"][steps]["wall_ms_per_step"]["median"]
    modes = {
        mode: {
            "forward": of["forward_ms"]["median"] / graphs["denoiser"]["median"],
            "loop": of["loop_ms_per_step"]["median"] / step,
        }
        for mode, of in torch["modes"].items()
    }
    once = {name: graphs[name]["median"] for name in graphs if name.startswith("prologue")}
    return {"torch_over_ours": modes, "denoiser_ms": graphs["denoiser"]["median"], "step_ms": step, "once_ms": once}


def peak_memory(peaks: Mapping[str, Result]) -> dict[str, Any]:
    """{contender: MiB, CUDA context included}, and tensorrt's over each other's. Raises OptionInvalid."""
    _check_same("memory peaks", list(peaks.values()))
    taken = {name: one["peak_mib"] for name, one in peaks.items()}
    ours = taken.get("tensorrt")
    shares = {name: ours / value for name, value in taken.items() if ours and value and name != "tensorrt"}
    return {**taken, "tensorrt_over": shares} if taken else {}


def _peaks(results: Sequence[Result]) -> dict[str, Result]:
    found = [one for one in results if one.get("benchmark") == "memory-peak"]
    names = dict.fromkeys(one["backend"] for one in found)
    return {name: _only(f"memory-peak of {name}", [one for one in found if one["backend"] == name]) for name in names}


def _ratios(loop: Result | None, allowed: float) -> Iterable[dict[str, Any]]:
    """Wall over replays, literally, which a GPU that waits within a launch passes; and over the step's time alone."""
    what = "captured, pictures of {} steps"
    yield _at_least("captures of the loop's step", _get(loop, "captures"), 1)
    for steps, of in ((loop or {}).get("captured") or {"any number of": {}}).items():
        yield _at_most(f"wall over replays, {what.format(steps)}", of.get("ratio"), allowed)
        wall, alone = of.get("wall_ms_per_step"), _step_alone(loop or {})
        ratio = wall["median"] / alone if wall and alone else None
        yield _at_most(f"wall of a step over its time alone, {what.format(steps)}", ratio, allowed)


def _step_alone(loop: Result) -> float | None:
    """Milliseconds of a step whose launches follow one another; of its graphs one by one where that is not told."""
    graphs = loop.get("graphs_ms", {})
    if "step_alone_ms" in loop:
        return float(loop["step_alone_ms"]["median"])
    if not {"denoiser", "solver"} <= graphs.keys():
        return None
    return float(graphs["denoiser"]["median"] + graphs["solver"]["median"])


def _at_most(what: str, found: float | None, allowed: float) -> dict[str, Any]:
    return {"what": what, "found": found, "allowed": allowed, "met": found is not None and found <= allowed}


def _at_least(what: str, found: float | None, allowed: float) -> dict[str, Any]:
    return {"what": what, "found": found, "allowed": allowed, "met": found is not None and found >= allowed}


def _get(result: Result | None, name: str) -> float | None:
    return None if result is None else result.get(name)


def _one(kind: str, found: Sequence[Result]) -> Result | None:
    return _only(kind, found) if found else None


def _only(kind: str, found: Sequence[Result]) -> Result:
    if len(found) > 1:
        raise _refused(kind, f"{len(found)} results of one kind")
    return found[0]


def _check_same(what: str, results: Sequence[Result]) -> None:
    told = [{**one["machine"], **one} for one in results]
    for name in SAME:
        values = {json.dumps(one[name]) for one in told if name in one}
        if len(values) > 1:
            raise _refused(what, f"{name} {' and '.join(sorted(values))}")


def _refused(what: str, actual: str) -> OptionInvalid:
    return OptionInvalid(
        f"merge, {what}", actual=actual, allowed="one result of each kind, all of the same work on one GPU",
        remedy="Name the files of one bundle, size, precision and lease alone.",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description="Results of one lease together")
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--ratio", type=float, required=True, help="wall over replays that is asked for")
    parser.add_argument("--build-seconds", type=float, help="of the build that is asked for")
    parser.add_argument("--without", nargs="+", choices=OPTIONAL, default=[], help="what is not asked for")
    return parser


if __name__ == "__main__":
    sys.exit(main())
