"""What a caller paints over: pictures of any size and kind as the arrays that a batch's graphs read.

Everything that happens to a picture on the host is here, and the same as in diffusers' VaeImageProcessor for what that
takes too. Does not know what latents are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engine.binding import Float32Array
from engine.errors import RequestInvalid

Picture = Image.Image | NDArray[np.uint8]
"""PIL's, or uint8 of (H, W), (H, W, 3) or (H, W, 4)."""
Pixels = NDArray[np.uint8]
ALLOWED = "a PIL image, or a uint8 array of (H, W), (H, W, 3) or (H, W, 4)"
DEEP = ("I", "F")
"""Modes of PIL without a stated white."""
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)


def check_picture(field: str, value: object) -> None:
    """Raise RequestInvalid where it is no picture; what PIL opened and did not yet read is read here."""
    if isinstance(value, Image.Image):
        with _translated(field):
            value.load()
        if value.mode in DEEP or not all(value.size):
            raise _invalid(field, f"{value.width}x{value.height} pixels of mode {value.mode}", "Convert it to RGB.")
        return
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise _invalid(field, kind, "Open a file with PIL, or scale to 0 … 255 and use `.astype(np.uint8)`.")
    flat = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))
    if not flat or not value.size:
        raise _invalid(field, f"an array of {value.shape}", "Put channels last; one picture to a request.")


def check_mask(field: str, value: object) -> None:
    """As check_picture; also where an array has 1 in white's place, which would keep all of the image."""
    check_picture(field, value)
    if isinstance(value, np.ndarray) and value.max() == 1:
        raise _invalid(field, "an array of 0 and 1", "White is 255: multiply it by 255.")


def image_pixels(image: Picture, height: int, width: int) -> Pixels:
    """(height, width, 3) uint8: turned as its EXIF says, laid on white, resized by Lanczos whatever its proportions."""
    with _translated("image"):
        resized = _opaque(_upright(image), WHITE).resize((width, height), Image.Resampling.LANCZOS)
        return np.array(resized)


def latent_mask(mask: Picture, height: int, width: int, factor: int) -> Float32Array:
    """(1, height / factor, width / factor) float32: 1 where the mask is white and is painted, 0 where the image stays.

    Turned as its EXIF says, laid on black, resized by Lanczos, grey, cut at one half; of each factor × factor pixels
    the first one counts, as diffusers' inpainting has it.
    """
    with _translated("mask"):
        upright = _upright(mask)
        flat = upright if upright.mode in ("L", "RGB") and not _has_alpha(upright) else _opaque(upright, BLACK)
        grey = np.asarray(flat.resize((width, height), Image.Resampling.LANCZOS).convert("L"))
    return (grey[None, ::factor, ::factor] >= 128).astype(np.float32)


def _upright(picture: Picture) -> Image.Image:
    """As PIL has it in 8 bits a channel, with the rotation that a camera noted in EXIF."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture))
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    return turned


def _opaque(image: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    """RGB; what has alpha is laid on the ground."""
    if not _has_alpha(image):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image.convert("RGBA")).convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    known = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    return known or (image.palette is not None and image.palette.mode == "RGBA")


@contextmanager
def _translated(field: str) -> Iterator[None]:
    """What PIL raises for a damaged file, as RequestInvalid."""
    try:
        yield
    except Exception as error:  # its readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise _invalid(field, f"an image that cannot be read ({error})", "Save it again, as PNG.") from error


def _invalid(field: str, actual: str, remedy: str) -> RequestInvalid:
    return RequestInvalid(f"request, {field}", actual=actual, allowed=ALLOWED, remedy=remedy)
