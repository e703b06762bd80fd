"""How alike pictures are to a reference: PSNR, SSIM, and FLIP as a person would see them one after the other.

PSNR's equation is in benchmarks/pairs.py; SSIM is scikit-image's, FLIP NVIDIA's own evaluator's, both of 8-bit sRGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import psnr

Pictures = NDArray[np.uint8]
EQUAL_DB = 999.0
"""What is written of equal pictures, for JSON has no infinity."""


def likeness(pictures: Pictures, reference: Pictures) -> dict[str, Any]:
    """Median and worst over (count, H, W, 3): psnr_db, ssim (1 is equal), flip (0 is equal)."""
    import flip_evaluator
    from skimage.metrics import structural_similarity

    found: dict[str, list[float]] = {"psnr_db": [], "ssim": [], "flip": []}
    for one, other in zip(pictures, reference, strict=True):
        value = psnr(one, other)
        found["psnr_db"].append(value if math.isfinite(value) else EQUAL_DB)
        found["ssim"].append(float(structural_similarity(one, other, channel_axis=2, data_range=255)))
        scaled = [np.ascontiguousarray(picture, np.float32) / 255 for picture in (other, one)]
        found["flip"].append(float(flip_evaluator.evaluate(*scaled, "LDR")[1]))
    worst = {"psnr_db": min, "ssim": min, "flip": max}
    return {
        "pictures": len(pictures),
        **{name: {"median": float(np.median(values)), "worst": worst[name](values)} for name, values in found.items()},
    }
