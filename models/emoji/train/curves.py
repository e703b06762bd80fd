"""Loss curves of train/logs as one small picture.

python -m train.curves --out curves.png
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

LOGS = Path(__file__).with_name("logs")
PANELS = (
    ("autoencoder", "vae.jsonl", ("loss",)),
    ("its decoder alone", "decoder.jsonl", ("loss",)),
    ("denoiser (256: dark, 128: light)", "denoiser.jsonl", ("loss_256", "loss_128")),
)
COLOURS = ((30, 70, 160), (120, 170, 230))
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 300, 190, 38, 22, 10, 30


def panel(title: str, rows: list[dict[str, float]], names: tuple[str, ...]) -> Image.Image:
    """One plot: loss (log scale) over minutes."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    values = [row[name] for row in rows for name in names]
    low, high = math.log(min(values)), math.log(max(values))
    end = rows[-1]["minutes"]

    def place(minutes: float, value: float) -> tuple[float, float]:
        x = LEFT + minutes / end * (WIDTH - LEFT - RIGHT)
        return x, TOP + (high - math.log(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    draw.text((LEFT, 4), title, fill="black")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=(170, 170, 170))
    for value in (max(values), math.exp((low + high) / 2), min(values)):
        y = place(0, value)[1]
        draw.text((2, y - 6), f"{value:.2f}", fill="black")
        draw.line([LEFT, y, WIDTH - RIGHT, y], fill=(230, 230, 230))
    draw.text((LEFT, HEIGHT - 24), f"0 to {end:.1f} minutes, {int(rows[-1]['step'])} steps", fill="black")
    for name, colour in zip(names, COLOURS, strict=False):
        draw.line([place(row["minutes"], row[name]) for row in rows], fill=colour, width=2)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    sheet = Image.new("RGB", (WIDTH * len(PANELS), HEIGHT), "white")
    for index, (title, file, names) in enumerate(PANELS):
        rows = [json.loads(line) for line in (LOGS / file).read_text(encoding="utf-8").splitlines()]
        sheet.paste(panel(title, rows, names), (index * WIDTH, 0))
    sheet.quantize(32).save(out, optimize=True)


if __name__ == "__main__":
    main()
