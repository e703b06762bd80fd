"""The figures of a result as rows of text: what the console's tables, the page and the README all show.

Knows no format; a cell is text, "–" where there is nothing to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = list[str]
Table = tuple[str, Row, list[Row]]
"""A title, the heads of the columns, and the rows."""
NONE = "–"
MIB = 2**20


def work_text(result: Mapping[str, Any]) -> str:
    """What was painted, in one line."""
    work = result["work"]
    steps = " and ".join(str(count) for count in result["plan"]["steps"])
    return (
        f"{work['model']}, {work['width']}×{work['height']}, {steps} steps, guidance {work['guidance_scale']:g}, "
        f"{work['scheduler']}"
    )


def machine_text(result: Mapping[str, Any]) -> str:
    """Where, in one line."""
    here = result["machine"]
    cpu = f"{here['cpu']}, {here['cores']} cores, {here['memory_bytes'] / 2**30:.0f} GiB, {here['system']}"
    return f"{here['gpu']}, driver {here['driver']}; {cpu}" if "gpu" in here else cpu


def versions_text(result: Mapping[str, Any]) -> str:
    """With what: every contender's libraries, each once."""
    found: dict[str, dict[str, None]] = {}
    for one in (result, *result["contenders"].values()):
        for name, version in (one.get("versions") or {}).items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())


def ceilings_text(result: Mapping[str, Any]) -> str:
    """The ceilings in one line."""
    products = [
        f"{one['tflops']:.3g} TFLOP/s in {name} ({one['by']})" for name, one in result["ceilings"]["matmul"].items()
    ]
    copy = result["ceilings"]["copy"]
    return ", ".join(products + ([f"{copy['gb_s']:.3g} GB/s copied ({copy['by']})"] if copy else [])) or "not measured"


def running(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The contenders that ran and took turns."""
    return {name: one for name, one in result["contenders"].items() if one["runs"] and one.get("speed")}


def speed(result: Mapping[str, Any]) -> Table:
    """Seconds of a picture for each step count, stages, steps, how many times as fast as diffusers."""
    counts = [str(count) for count in result["plan"]["steps"]]
    first = counts[0]
    heads = ["contender", *[f"{count} steps, s" for count in counts], "p5 to p95", "× diffusers", "conditioning, ms",
             "loop, ms", "decode, ms", "GPU, ms", "loop / device"]  # fmt: skip
    rows = []
    for name, one in running(result).items():
        of = one["speed"][first]
        stages = [_ms(of["stages"].get(stage)) for stage in ("conditioning", "loop", "decode")]
        # Events around eager work count the waiting on both sides; where the kernels' own time is known, it is told.
        ratio = one.get("picture_over_kernels") or of.get("loop_over_device", {}).get("median")
        rows.append([
            name, *[_seconds(one["speed"].get(count)) for count in counts],
            f"{of['seconds']['p5']:.3g} to {of['seconds']['p95']:.3g}", _times(one), *stages,
            _number(_gpu_ms(one, of), "{:.4g}"), _number(ratio, "{:.3f}"),
        ])  # fmt: skip
    return f"a picture from its prompt, seconds (median of {result['plan']['turns']} turns)", heads, rows


def _gpu_ms(one: Mapping[str, Any], of: Mapping[str, Any]) -> float | None:
    """What the GPU was busy for in a picture: by events around what was launched, of torch by its kernels."""
    if one.get("kernels_ms") or one["facts"].get("clock") != "gpu" or "device_ms" not in of:
        return one.get("kernels_ms")
    return float(sum(times["median"] for times in of["device_ms"].values()))


def start(result: Mapping[str, Any]) -> Table:
    """Fresh processes: first picture, compile and build, memory, weights."""
    heads = ["contender", "first picture after, s", "the first time, s", "of it compiling, s", "building, s",
             "host at most, MiB", "GPU at most, MiB", "weights, MiB"]  # fmt: skip
    rows = []
    for name, one in result["contenders"].items():
        if not one["runs"]:
            continue
        build = one.get("build") or {}
        rows.append([
            name, f"{one['start']['cold_s']:.1f}", f"{one['coldest_start']['cold_s']:.1f}",
            _number(one.get("compile_s"), "{:.1f}"), _number(build.get("seconds"), "{:.0f}"),
            _mib(one["host_peak_bytes"]), _mib(one["gpu_peak_bytes"]), _mib(one["weights_bytes"]),
        ])  # fmt: skip
    return "a fresh process", heads, rows


def batches(result: Mapping[str, Any]) -> Table:
    """Pictures a second by how many at a time."""
    counts = [str(count) for count in result["plan"]["batches"]]
    rows, steps = [], None
    for name, one in running(result).items():
        found = one["batches"].get("by_count") or {}
        steps = one["batches"].get("steps", steps)
        if found:
            rows.append([name, *[_rate(found.get(count)) for count in counts]])
    return f"pictures a second, {steps} steps each", ["contender", *[f"{count} at a time" for count in counts]], rows


def limits(result: Mapping[str, Any]) -> Table:
    """How close each part comes to the device's ceilings."""
    heads = ["contender", "part", "ms", "GFLOP", "MiB", "at best, ms", "bound by", "reached"]
    rows = []
    for name, one in result["contenders"].items():
        for part, of in (one.get("limits") or {}).items():
            if part in MAIN_PARTS and not one["of"]:
                rows.append([
                    name, part, f"{of['ms']:.4g}", f"{of['gflop']:.3g}", f"{of['mib']:.3g}", f"{of['floor_ms']:.4g}",
                    of["bound"], f"{100 * of['fraction']:.0f} %",
                ])  # fmt: skip
    return f"the limit: {ceilings_text(result)}", heads, rows


MAIN_PARTS = ("conditioning", "denoiser", "decoder", "picture")


def quality(result: Mapping[str, Any]) -> Table:
    """Likeness to the reference, and what the model's judge says."""
    heads = ["contender", "PSNR, dB", "worst", "SSIM", "FLIP", "worst", "judge: object", "background"]
    rows = []
    for name, one in result["contenders"].items():
        of, judge = one.get("quality"), one.get("judge", {})
        if of is None or name == result["reference"]:
            continue
        rows.append([
            name, decibels(of["psnr_db"]["median"]), decibels(of["psnr_db"]["worst"]),
            _number(of.get("ssim", {}).get("median"), "{:.4f}"), _number(of.get("flip", {}).get("median"), "{:.2g}"),
            _number(of.get("flip", {}).get("worst"), "{:.2g}"), _number(judge.get("object"), "{:.2f}"),
            _number(judge.get("background"), "{:.2f}"),
        ])  # fmt: skip
    count = result["plan"]["pictures"]
    what = "a picture" if count == 1 else f"{count} pictures"
    return f"{what} against those of {result['reference']} in fp32", heads, rows


def comparisons(result: Mapping[str, Any]) -> Table:
    """Precisions and attentions, pair by pair."""
    heads = ["by", "of", "s", "weights, MiB", "host, MiB", "GPU, MiB", "FLIP"]
    rows = []
    for one in result["comparisons"]:
        for index, name in enumerate(one["names"]):
            rows.append([
                one["by"] if not index else "", name, _number(one["seconds"][index], "{:.3g}"),
                _mib(one["weights_bytes"][index]), _mib(one["host_peak_bytes"][index]),
                _mib(one["gpu_peak_bytes"][index]), _number(one["flip"][index], "{:.2g}"),
            ])  # fmt: skip
    return "fp16 against fp32, fused against unfused attention", heads, rows


def absent(result: Mapping[str, Any]) -> Table:
    """Who did not run, or not to the end, and why."""
    rows = [[name, one["reason"]] for name, one in result["contenders"].items() if one["reason"]]
    return "did not run", ["contender", "why"], rows


def settings(result: Mapping[str, Any]) -> Table:
    """What each contender was set to."""
    rows = [
        [name, ", ".join(f"{key}={value}" for key, value in one["settings"].items() if value is not None)]
        for name, one in result["contenders"].items()
        if one["runs"]
    ]
    return "settings", ["contender", "settings"], rows


def tables(result: Mapping[str, Any]) -> list[Table]:
    """All that have rows, in the order in which one reads them."""
    made: Iterable[Table] = (
        make(result) for make in (speed, start, batches, limits, quality, comparisons, absent, settings)
    )
    return [without_empty(table) for table in made if table[2]]


def without_empty(table: Table) -> Table:
    """The table without columns that tell nothing of anybody."""
    title, heads, lines = table
    kept = [index for index in range(len(heads)) if any(line[index] != NONE for line in lines)]
    return title, [heads[index] for index in kept], [[line[index] for index in kept] for line in lines]


TURNS = (
    "Contenders take turns, a picture each, {alive}; who begins moves on by one each round. Stages end where "
    "the device is done. Batches, parts and starts are measured one contender after another."
)
RATIO = (
    "loop / device: wall time of the loop over what its launches took by the device's own clock; of torch on a GPU a "
    "whole picture's over the time of its kernels."
)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures should know, a sentence each."""
    groups = result.get("groups") or [[]]
    apart = f"in groups that fit into memory ({'; '.join(map(', '.join, groups))}), whose ratios are of different times"
    found = [TURNS.format(alive="all alive at once" if len(groups) == 1 else apart), RATIO]
    reasons = [
        f"{name}, {count} at a time: {of['reason']}."
        for name, one in running(result).items()
        for count, of in list((one["batches"].get("by_count") or {}).items())
        if "reason" in of
    ]
    found += list({line.partition(",")[0]: line for line in reversed(reasons)}.values())
    if result.get("export") and "seconds" in result["export"]:
        exported = result["export"]
        found.append(
            f"An export of this model with one scheduler took {exported['seconds']:.1f} s "
            f"({exported['size_bytes'] / MIB:.0f} MiB)."
        )
    other = result.get("other_cores")
    if other is not None and other > QUIET_CORES:
        found.append(f"Other work kept {other:.2f} cores busy meanwhile: repeat it on a quiet machine.")
    return found


QUIET_CORES = 0.2
"""Other work that is no reason to doubt the times."""


def _seconds(of: Mapping[str, Any] | None) -> str:
    return NONE if of is None else f"{of['seconds']['median']:.3f}"


def _times(one: Mapping[str, Any]) -> str:
    found = one.get("times_as_fast_as", {}).get("diffusers")
    return NONE if found is None else f"{found['median']:.2f}"


def _ms(of: Mapping[str, float] | None) -> str:
    return NONE if of is None else f"{1e3 * of['median']:.4g}"


def _rate(of: Mapping[str, Any] | None) -> str:
    return NONE if of is None or "reason" in of else f"{of['images_per_s']['median']:.3g}"


def _mib(value: float | None) -> str:
    return NONE if value is None else f"{value / MIB:.0f}"


def decibels(value: float) -> str:
    """A PSNR, or that the pictures are equal."""
    return "equal" if value >= EQUAL_DB else f"{value:.1f}"


EQUAL_DB = 999.0


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def columns(table: Table) -> Sequence[bool]:
    """Of each column, whether it holds numbers, which stand at the right."""
    _, heads, rows = table
    return [
        all(row[index] == NONE or row[index][:1].isdigit() for row in rows) and any(row[index] != NONE for row in rows)
        for index in range(len(heads))
    ]
