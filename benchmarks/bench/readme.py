"""The README's table of measured figures, made from the results that are kept in benchmarks/results.

python -m benchmarks.bench.readme           writes it between its two marker lines
python -m benchmarks.bench.readme --check   exit code 1 where it is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import rows
from benchmarks.bench.process import ROOT
from benchmarks.bench.result import read_result
from engine.errors import OptionInvalid, ZturboError

BEGIN = "<!-- bench: begin, made by `python -m benchmarks.bench.readme` -->"
END = "<!-- bench: end -->"
RESULTS = Path("benchmarks") / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench.readme", description="The README's measured table"
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    try:
        before = options.readme.read_text(encoding="utf-8")
        after = filled(before, section(ROOT))
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if not options.check and after != before:
        options.readme.write_text(after, encoding="utf-8")
    return int(options.check and after != before)


def filled(text: str, made: str) -> str:
    """The text with what stands between its marker lines replaced. Raises OptionInvalid where they are not there."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise OptionInvalid(
            "README.md", actual="no marker lines", allowed=f"a line '{BEGIN}', and '{END}' below it",
            remedy="Put them where the table should be.",
        )  # fmt: skip
    return f"{text[: begin + len(BEGIN)]}\n{made}{text[end:]}"


def section(root: Path) -> str:
    """Markdown of every result named bench-*.json, the newest form of each."""
    paths = sorted((root / RESULTS).glob("bench-*.json"))
    if not paths:
        return "No result of `zturbo bench` is kept yet.\n"
    return "".join(one_result(read_result(path), path.relative_to(root).as_posix()) for path in paths)


def one_result(result: Mapping[str, Any], link: str) -> str:
    """A line of what and where, and a row for each contender that ran."""
    first = str(result["plan"]["steps"][0])
    gpu = result["device"] == "gpu"
    heads = ["contender", f"{first} steps, s", "p5 to p95", "times diffusers", "first picture, s",
             "GPU, MiB" if gpu else "memory, MiB", "denoiser: of the limit", "PSNR, dB"]  # fmt: skip
    lines = [f"`zturbo bench` on {where(result)}: {rows.work_text(result)} ([result]({link})).", ""]
    lines += [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_line(_row(name, one, first, result)) for name, one in rows.running(result).items()]
    lines += ["", *[f"Did not run: {text}." for text in _absent(result)]]
    return "\n".join(lines).rstrip() + "\n\n"


def where(result: Mapping[str, Any]) -> str:
    """The machine, the day, and whether other work ran beside it."""
    here = result["machine"]
    name = here.get("gpu") or f"{here['cores']} cores of {here['cpu']}"
    other = result.get("other_cores") or 0.0
    busy = f", {other:.1f} cores busy with other work" if other > rows.QUIET_CORES else ""
    return f"{name}, {result['day']}{busy}"


def _row(name: str, one: Mapping[str, Any], steps: str, result: Mapping[str, Any]) -> rows.Row:
    seconds = one["speed"][steps]["seconds"]
    ratio = one.get("times_as_fast_as", {}).get("diffusers")
    limit = (one.get("limits") or {}).get("denoiser")
    memory = one["gpu_peak_bytes"] or one["host_peak_bytes"]
    return [
        f"{name}, {one['precision']}" if one["precision"] not in name else name, f"{seconds['median']:.3g}",
        f"{seconds['p5']:.3g} to {seconds['p95']:.3g}", rows.NONE if ratio is None else f"{ratio['median']:.2f}",
        f"{one['start']['cold_s']:.1f}", f"{memory / rows.MIB:,.0f}",
        rows.NONE if limit is None else f"{100 * limit['fraction']:.0f} %",
        "reference" if name == result["reference"] else _psnr(one),
    ]  # fmt: skip


def _psnr(one: Mapping[str, Any]) -> str:
    return rows.decibels(one["quality"]["psnr_db"]["median"]) if "quality" in one else rows.NONE


def _absent(result: Mapping[str, Any]) -> list[str]:
    found = [f"{name} ({one['reason'].rstrip('.')})" for name, one in result["contenders"].items() if one["reason"]]
    return ["; ".join(found)] if found else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
