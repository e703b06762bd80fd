"""What a request gives back, and how pictures are written. Knows no model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from engine.errors import OutputError


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A request's pictures. arrays: (num_images, H, W, 3) uint8. seconds: wall time per stage of its batches.

    metadata: what was asked with every default filled in, and what ran it; JSON types only.
    """

    arrays: NDArray[np.uint8]
    seconds: dict[str, float]
    metadata: dict[str, Any]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return [Image.fromarray(array) for array in self.arrays]


def save_images(result: Result, folder: Path, stem: str = "image") -> list[Path]:
    """Write <stem>-0.png … with the request in the PNG's `zturbo` text; each file appears whole or not at all.

    Raises OutputError.
    """
    paths = []
    for index, image in enumerate(result.images):
        path = folder / f"{stem}-{index}.png"
        save_png(image, path, {**result.metadata, "image": index})
        paths.append(path)
    return paths


def save_png(image: Image.Image, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write one PNG atomically, its folder included. Raises OutputError."""
    text = PngImagePlugin.PngInfo()
    if metadata is not None:
        text.add_text("zturbo", json.dumps(metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                image.save(stream, format="PNG", pnginfo=text)
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink()
            raise
    except OSError as error:
        raise OutputError(
            str(path), actual=f"{type(error).__name__}: {error.strerror or error}",
            allowed="a place that can be written", remedy="Choose another folder with --out.",
        ) from error  # fmt: skip


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """One picture of many, each with its caption below, on white."""
    width, height, label = images[0].width, images[0].height, 18
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + label + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (width + 4) + 2, index // columns * (height + label + 4) + 2
        sheet.paste(image, (left, top))
        pen.text((left + 2, top + height + 3), caption, fill="black")
    return sheet
