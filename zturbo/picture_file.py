"""Pictures that a command is given as files: read at once, and what cannot be read told by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from engine.binding import Array
from engine.errors import OptionInvalid
from runtime.images import save_png


def read_picture(option: str, path: Path | None) -> Image.Image | None:
    """The picture in a file; None for None. Raises OptionInvalid, also where it would take more memory than is sane."""
    if path is None:
        return None
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise OptionInvalid(
            f"{option} '{path}'", actual=f"a picture of more than {most} pixels", allowed=f"up to {most} pixels",
            remedy="Scale it down first.",
        ) from error  # fmt: skip
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise OptionInvalid(
            f"{option} '{path}'", actual=f"no picture that can be read ({error})",
            allowed="an image file such as PNG, JPEG or WebP", remedy="Check the path, or save it again as PNG.",
        ) from error  # fmt: skip
    return image


def save_preview(preview: Array, path: Path) -> None:
    """Write a step's previews, (samples, h, w, 3), side by side as one PNG, whole or not at all. Raises OutputError."""
    save_png(Image.fromarray(np.concatenate(list(preview), 1)), path)
