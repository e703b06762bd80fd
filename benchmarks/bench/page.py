"""A result as one HTML page that needs no other file: tables, plots and pictures are within it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import rows
from benchmarks.bench.plan import PROMPTS

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff; margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .small { color: #555; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #999; } .n { text-align: right; font-variant-numeric: tabular-nums; }
tr.ours td:first-child { font-weight: 600; }
img { max-width: 100%; height: auto; } .pictures img { width: 128px; height: 128px; display: block; }
.pictures td, .pictures th { border: 0; text-align: center; font-weight: 400; }
.pictures td:first-child { text-align: left; }
figure { margin: 1rem 0; }
"""
OURS = ("onnxruntime", "tensorrt", "tensorrt_rtx")


def write_page(
    result: Mapping[str, Any], pictures: Mapping[str, Sequence[str]], plots: Mapping[str, bytes], path: Path
) -> None:
    """Write the page. pictures: {contender: base64 of JPEG files, of the first prompts}; plots: {name: PNG}."""
    facts = f"{rows.versions_text(result)}; commit {result['commit']}, {result['day']}"
    head = [
        f"<h1>zturbo bench: {html.escape(rows.work_text(result))}</h1>",
        f"<p>{html.escape(rows.machine_text(result))}</p>",
        f'<p class="small">{html.escape(facts)}; {result["seconds"] / 60:.1f} minutes</p>',
    ]
    told = {table[0]: _table(table) for table in rows.tables(result)}
    after = {0: ("speed",), 1: ("memory",), 2: ("batches",), 3: ("roofline",)}
    body = []
    for index, text in enumerate(told.values()):
        body.append(text)
        body += [_plot(name, plots[name]) for name in after.get(index, ()) if name in plots]
    shown = {name for names in after.values() for name in names}
    body += [_plot(name, raw) for name, raw in plots.items() if name not in shown]
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in rows.notes(result))
    parts = [*head, *body, _pictures(pictures, result), f'<div class="small">{notes}</div>']
    title = html.escape(f"zturbo bench, {result['work']['model']}")
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8",
    )  # fmt: skip


def _table(table: rows.Table) -> str:
    title, heads, lines = table
    numeric = rows.columns(table)
    classes = ['class="n"' if one else "" for one in numeric]
    head = "".join(f"<th {kind}>{html.escape(text)}</th>" for kind, text in zip(classes, heads, strict=True))
    body = "".join(
        f'<tr class="{"ours" if line[0].split()[:1] and line[0].split()[0] in OURS else ""}">'
        + "".join(f"<td {kind}>{html.escape(text)}</td>" for kind, text in zip(classes, line, strict=True))
        + "</tr>\n"
        for line in lines
    )
    return f'<h2>{html.escape(title)}</h2>\n<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _plot(name: str, raw: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    return f'<figure><img alt="{html.escape(name)}" src="{source}"></figure>'


def _pictures(pictures: Mapping[str, Sequence[str]], result: Mapping[str, Any]) -> str:
    """Everyone's pictures of the same noise, a row each."""
    if not pictures:
        return ""
    most = max(len(found) for found in pictures.values())
    head = "".join(f"<th>{html.escape(prompt)}</th>" for prompt in PROMPTS[:most])
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f'<td><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{one}"></td>' for one in found)
        + "</tr>\n"
        for name, found in pictures.items()
    )
    title = f"the same noise, {result['plan']['steps'][0]} steps"
    return f'<h2>{title}</h2>\n<div class="wide"><table class="pictures"><tr><th></th>{head}</tr>\n{body}</table></div>'
