"""A result as plots: time by stage, memory, and the roofline. PNG files, and the same as bytes for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import rows

STAGES = {"conditioning": "#8da0cb", "loop": "#4477aa", "decode": "#cc8844"}
MARKERS = "osD^vPX*<>hp"
COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255", "#117733", "#555555")
PARTS = {"conditioning": "v", "denoiser": "o", "decoder": "s"}
DPI = 110


def draw(result: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """{name: PNG} of the plots that have something to show, none without matplotlib; also at folder/<name>.png."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return {}
    mpl.use("agg")
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    found: dict[str, bytes] = {}
    for name, make in (("speed", speed), ("memory", memory), ("batches", batches), ("roofline", roofline)):
        figure = make(result)
        if figure is None:
            continue
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        found[name] = path.read_bytes()
    return found


def _figure(height: float, title: str, width: float = 9.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def speed(result: Mapping[str, Any]) -> Any:
    """Bars of a picture's seconds by stage, with the spread of the whole, the fastest first."""
    steps = str(result["plan"]["steps"][0])
    found = {name: one["speed"][steps] for name, one in rows.running(result).items() if steps in one["speed"]}
    if not found:
        return None
    names = sorted(found, key=lambda name: float(found[name]["seconds"]["median"]), reverse=True)
    figure, axes = _figure(1.3 + 0.36 * len(names), f"a picture of {steps} steps from its prompt")
    left = np.zeros(len(names))
    for stage, colour in STAGES.items():
        width = np.array([found[name]["stages"][stage]["median"] for name in names])
        axes.barh(names, width, left=left, color=colour, label=stage, height=0.62)
        left += width
    whole = [found[name]["seconds"] for name in names]
    ends = np.array([[max(0.0, one["median"] - one["p5"]), max(0.0, one["p95"] - one["median"])] for one in whole]).T
    medians = np.array([one["median"] for one in whole])
    axes.errorbar(medians, names, xerr=ends, fmt="none", ecolor="#222222", elinewidth=1, capsize=3)
    most = float((medians + ends[1]).max())
    for name, one in zip(names, whole, strict=True):
        axes.text(one["p95"] + 0.012 * most, name, f"{one['median']:.3g} s", va="center", fontsize=9)
    axes.set_xlim(0, 1.13 * most)
    axes.set_xlabel("seconds; the line spans p5 to p95")
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    return figure


def memory(result: Mapping[str, Any]) -> Any:
    """Bars of the most memory that a fresh process took: the GPU's where it was watched, else the host's."""
    ran = {name: one for name, one in result["contenders"].items() if one["runs"]}
    gpu = any(one["gpu_peak_bytes"] for one in ran.values())
    which = "gpu_peak_bytes" if gpu else "host_peak_bytes"
    values = {name: one[which] / rows.MIB for name, one in ran.items() if one[which]}
    if not values:
        return None
    names = sorted(values, key=lambda name: values[name], reverse=True)
    title = f"{'GPU' if gpu else 'host'} memory at the most, a fresh process that paints two pictures"
    figure, axes = _figure(1.3 + 0.36 * len(names), title)
    weights = [(ran[name]["weights_bytes"] or 0) / rows.MIB for name in names]
    axes.barh(names, [values[name] for name in names], color="#8da0cb", height=0.62, label="all of the process")
    axes.barh(names, weights, color="#4477aa", height=0.62, label="of which weights")
    most = max(values.values())
    for name in names:
        axes.text(values[name] + 0.012 * most, name, f"{values[name]:.0f} MiB", va="center", fontsize=9)
    axes.set_xlim(0, 1.13 * most)
    axes.set_xlabel("MiB")
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return figure


def batches(result: Mapping[str, Any]) -> Any:
    """Lines of pictures a second over pictures at a time."""
    found = {}
    for name, one in rows.running(result).items():
        by_count = one["batches"].get("by_count") or {}
        points = {int(c): of["images_per_s"]["median"] for c, of in by_count.items() if "images_per_s" in of}
        if points:
            found[name] = points
    if not any(len(points) > 1 for points in found.values()):
        return None
    steps = next(one["batches"]["steps"] for one in rows.running(result).values() if one["batches"].get("steps"))
    figure, axes = _figure(4.2, f"pictures a second, {steps} steps each")
    for index, (name, points) in enumerate(found.items()):
        axes.plot(list(points), list(points.values()), marker=MARKERS[index % len(MARKERS)], label=name,
                  color=COLOURS[index % len(COLOURS)])  # fmt: skip
    counts = sorted({count for points in found.values() for count in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pictures at a time")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def roofline(result: Mapping[str, Any]) -> Any:
    """Rates reached over operations for each byte, below the two ceilings of the precision most contenders have."""
    ran = {name: one for name, one in result["contenders"].items() if one.get("limits") and not one["of"]}
    precision = _commonest([str(one["precision"]) for one in ran.values()])
    ceiling, copy = result["ceilings"]["matmul"].get(precision), result["ceilings"]["copy"]
    if not ran or ceiling is None or not copy:
        return None
    figure, axes = _figure(4.8, f"how close to the limit, {precision}: colour is who, shape is which part")
    points = [of for one in ran.values() for part, of in one["limits"].items() if part in PARTS]
    ridge = ceiling["tflops"] * 1e3 / copy["gb_s"]
    low, high = min(ridge, *(of["intensity"] for of in points)) / 4, max(of["intensity"] for of in points) * 3
    xs = np.geomspace(low, high, 200)
    roof = np.minimum(ceiling["tflops"] * 1e3, copy["gb_s"] * xs)
    axes.plot(xs, roof, color="#222222", linewidth=1.2)
    axes.text(high, roof[-1] * 1.06, f"{rate(roof[-1])} of products", ha="right", va="bottom", fontsize=9)
    axes.text(low * 1.5, roof[0] * 1.05, f"{copy['gb_s']:,.3g} GB/s copied", ha="left", va="center", fontsize=9)
    for index, (name, one) in enumerate(ran.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot([], [], linewidth=5, color=colour, label=name)
        for part, marker in PARTS.items():
            of = one["limits"].get(part)
            if of is not None:
                axes.plot(
                    of["intensity"], of["tflops"] * 1e3, marker=marker, color=colour, linestyle="none", alpha=0.85
                )
    for part, marker in PARTS.items():
        axes.plot([], [], marker=marker, linestyle="none", color="#999999", label=part)
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest = min(of["tflops"] * 1e3 for of in points)
    axes.set_ylim(lowest / 2, float(roof.max()) * 2)
    axes.set_xlabel("operations for each byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(lambda *_: "")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def rate(gflops: float) -> str:
    """A rate of operations in the unit that suits it."""
    return f"{gflops / 1e3:.3g} TFLOP/s" if gflops >= 1e3 else f"{gflops:.3g} GFLOP/s"


def _commonest(words: Sequence[str]) -> str:
    return max(dict.fromkeys(words), key=words.count, default="fp32")
