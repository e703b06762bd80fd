"""What a request gives back, and how pictures are written. Knows no model."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from engine.errors import OptionInvalid, OutputError
from runtime.per_image import of_one_image


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A request's pictures. arrays: (num_images, H, W, 3) uint8. seconds: wall time per stage of the whole call, other
    requests in it included.

    metadata: what was asked with every default filled in, and what ran it; JSON types only.
    """

    arrays: NDArray[np.uint8]
    seconds: dict[str, float]
    metadata: dict[str, Any]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return [Image.fromarray(array) for array in self.arrays]

    def metadata_of(self, image: int) -> dict[str, Any]:
        """The metadata of one picture: that of a request whose image `image` it is."""
        return of_one_image(self.metadata, image)

    def save(self, folder: Path | str, stem: str = "image") -> list[Path]:
        """Write each picture to folder/<stem>-<number>.png with its request in the PNG's `zturbo` text; their paths.

        A PNG's text is metadata_of its picture: where seeds or guidance scales are one per image, it has its own.
        Numbers go on after the highest there is, so nothing is overwritten, not by another process at the same time
        either. A file appears whole or not at all. Raises OutputError, or OptionInvalid where stem is no file name.
        """
        _check_stem(stem)
        folder, paths = Path(folder), list[Path]()
        with _translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
            number = _next_number(folder, stem)
            for index, image in enumerate(self.images):
                with _partial_png(image, folder, self.metadata_of(index)) as partial:
                    while not _took_name(partial, folder / f"{stem}-{number}.png"):
                        number += 1
                paths.append(folder / f"{stem}-{number}.png")
        return paths


def save_png(image: Image.Image, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write one PNG, its folder included, in place of what was there: whole or not at all. Raises OutputError."""
    with _translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial_png(image, path.parent, metadata) as partial:
            partial.replace(path)


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


def _check_stem(stem: str) -> None:
    if not stem or re.search(r"[/\\:\0]", stem):
        raise OptionInvalid(
            "stem", actual=repr(stem), allowed="the beginning of a file name, without / \\ and :",
            remedy="Name the folder in `folder`.",
        )  # fmt: skip


def _next_number(folder: Path, stem: str) -> int:
    """One more than the highest number that a <stem>-<number>.png in the folder has; 0 where there is none."""
    pattern = re.compile(re.escape(stem) + r"-([0-9]{1,9})\.png")
    found = [int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return max(found, default=-1) + 1


@contextmanager
def _partial_png(image: Image.Image, folder: Path, metadata: dict[str, Any] | None) -> Iterator[Path]:
    """A whole PNG under a name that nothing else has, with the permissions of the umask; gone when the block ends."""
    text = PngImagePlugin.PngInfo()
    if metadata is not None:
        text.add_text("zturbo", json.dumps(metadata))
    partial = folder / f".zturbo-{secrets.token_hex(8)}.partial"
    try:
        with partial.open("xb") as stream:
            image.save(stream, format="PNG", pnginfo=text)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _took_name(partial: Path, path: Path) -> bool:
    """Give a file its name, unless something has that name already; there is no moment between look and take."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: an empty file holds the name for a moment
        try:
            path.open("xb").close()
        except FileExistsError:
            return False
        try:
            partial.replace(path)
        except BaseException:
            path.unlink()
            raise
    return True


@contextmanager
def _translated(subject: Path) -> Iterator[None]:
    """OSErrors as OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            str(subject), actual=f"{type(error).__name__}: {error.strerror or error}",
            allowed="a place that can be written", remedy="Choose another folder (`--out` on the command line).",
        ) from error  # fmt: skip
