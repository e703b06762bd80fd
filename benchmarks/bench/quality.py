"""How alike pictures are to a reference: PSNR, SSIM, and FLIP as a person would see them one after the other.

PSNR's equation is in benchmarks/pairs.py; SSIM is scikit-image's, FLIP NVIDIA's own evaluator's, both of 8-bit sRGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import psnr

Pictures = NDArray[np.uint8]
EQUAL_DB = 999.0
"""What is written of equal pictures, for JSON has no infinity."""


def likeness(pictures: Pictures, reference: Pictures) -> dict[str, Any]:
    """Median and worst over (count, H, W, 3): psnr_db, ssim (1 is equal), flip (0 is equal).

    ssim and flip are left out where their libraries are not installed.
    """
    measures = {"psnr_db": _psnr_db, **_from_libraries()}
    worst = {"psnr_db": min, "ssim": min, "flip": max}
    found: dict[str, Any] = {"pictures": len(pictures)}
    for name, measure in measures.items():
        values = [measure(one, other) for one, other in zip(pictures, reference, strict=True)]
        found[name] = {"median": float(np.median(values)), "worst": worst[name](values)}
    return found


def _psnr_db(picture: Pictures, reference: Pictures) -> float:
    value = psnr(picture, reference)
    return value if math.isfinite(value) else EQUAL_DB


def _from_libraries() -> dict[str, Callable[[Pictures, Pictures], float]]:
    try:
        import flip_evaluator
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        return {}

    def ssim(picture: Pictures, reference: Pictures) -> float:
        return float(structural_similarity(picture, reference, channel_axis=2, data_range=255))

    def flip(picture: Pictures, reference: Pictures) -> float:
        scaled = [np.ascontiguousarray(one, np.float32) / 255 for one in (reference, picture)]
        return float(flip_evaluator.evaluate(*scaled, "LDR")[1])

    return {"ssim": ssim, "flip": flip}
