"""Sprites: the emoji pictures of world.OBJECTS, cropped, squared and kept as one file of webp bytes.

    python -m train.sprites --work DIR             npm packages -> DIR/sprites.npz
    python -m train.sprites --work DIR --atlas F   also the judge's small templates

Owns the download and the crop. Knows nothing of backgrounds or prompts.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from world import OBJECTS

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "unicode-emoji-json@0.9.0"
SPRITE_PX = 256
TILE_PX = 64
ATLAS_COLUMNS = 12


def fetch(package: str, folder: Path) -> Path:
    """Download one npm package with `npm pack` and return the tarball's path."""
    listing = subprocess.run(
        ["npm", "pack", "--json", package], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    return folder / str(json.loads(listing)[0]["filename"]).replace("@", "").replace("/", "-")


def read_member(tarball: Path, names: list[str]) -> bytes:
    with tarfile.open(tarball) as archive:
        for name in names:
            try:
                member = archive.extractfile(name)
            except KeyError:
                continue
            if member is not None:
                return member.read()
    raise FileNotFoundError(f"{tarball.name}: holds none of {names}")


def squared(picture: Image.Image) -> Image.Image:
    """Crop to what is visible and pad to a square, so that a sprite's longest side fills its tile."""
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        raise ValueError("an empty sprite")
    cropped = picture.crop(box)
    side = max(cropped.size)
    tile = Image.new("RGBA", (side, side))
    tile.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return tile


def resized(tile: Image.Image, side_px: int) -> Image.Image:
    """Resize through premultiplied alpha, so that no dark fringe appears."""
    return tile.convert("RGBa").resize((side_px, side_px), Image.Resampling.LANCZOS).convert("RGBA")


def collect(work: Path) -> dict[str, Image.Image]:
    """Every object's sprite, (256, 256) RGBA, in the order of world.OBJECTS."""
    pictures, names = fetch(PICTURES, work), fetch(NAMES, work)
    table = json.loads(read_member(names, ["package/data-by-emoji.json"]))
    emoji_of = {entry["name"]: emoji for emoji, entry in table.items()}
    sprites = {}
    for word, name in OBJECTS.items():
        points = [f"{ord(char):04x}" for char in emoji_of[name]]
        bare = [point for point in points if point != "fe0f"]
        files = [f"package/assets/{'-'.join(each)}.webp" for each in (points, bare)]
        picture = Image.open(io.BytesIO(read_member(pictures, files))).convert("RGBA")
        sprites[word] = resized(squared(picture), SPRITE_PX)
    return sprites


def atlas(sprites: dict[str, Image.Image]) -> Image.Image:
    """One sheet of (64, 64) tiles, twelve a row, in the order of world.OBJECTS."""
    rows = math.ceil(len(sprites) / ATLAS_COLUMNS)
    sheet = Image.new("RGBA", (ATLAS_COLUMNS * TILE_PX, rows * TILE_PX))
    for index, sprite in enumerate(sprites.values()):
        row, column = divmod(index, ATLAS_COLUMNS)
        sheet.paste(resized(sprite, TILE_PX), (column * TILE_PX, row * TILE_PX))
    return sheet


def webp_bytes(picture: Image.Image, **options: bool | int) -> np.ndarray:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def load(work: Path) -> np.ndarray:
    """(objects, 256, 256, 4) uint8, straight alpha, from what main() wrote."""
    with np.load(work / "sprites.npz") as packed:
        pictures = [Image.open(io.BytesIO(packed[word].tobytes())).convert("RGBA") for word in OBJECTS]
    return np.stack([np.asarray(picture) for picture in pictures])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--atlas", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sprites = collect(options.work)
    packed = {word: webp_bytes(sprite, lossless=True, exact=False) for word, sprite in sprites.items()}
    np.savez(options.work / "sprites.npz", **packed)
    if options.atlas is not None:
        atlas(sprites).save(options.atlas, "WEBP", quality=92, method=6)
    print(f"{len(sprites)} sprites in {options.work / 'sprites.npz'}")


if __name__ == "__main__":
    main()
