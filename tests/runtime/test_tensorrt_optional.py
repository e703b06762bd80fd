"""Plans that a picture can be painted without, missing or loaded late, through the TensorRT backend on the fakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.errors import PlanMissing
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.fake_plans import Shelf

pytest.importorskip("onnxruntime")
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8)
CAT = {"prompt": "a cat", "height": 128, "width": 128, "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def shelf(monkeypatch, tmp_path, tiny_bundle):
    made = Shelf(monkeypatch, Path(shutil.copytree(tiny_bundle, tmp_path / "tiny", copy_function=shutil.copy)))
    made.plans = made.put("128@2", precision="fp32")
    return made


def test_they_are_loaded_where_they_are_needed_and_no_sooner(shelf):
    with Pipeline.load(shelf.folder, "tensorrt", precision="fp32") as pipeline:
        pipeline.generate(Request(**CAT))
        assert list(pipeline.backend._engines) == ["128@2.fp32"]
        shown = []
        painted = pipeline.generate(Request(**CAT, image=PIXELS), lambda step: shown.append(step.preview()))
        assert list(pipeline.backend._engines) == ["128@2.fp32", "128@2.fp32, encoder", "128@2.fp32, preview"]
    with Pipeline.load(shelf.folder, "onnxruntime", precision="fp32", threads=1) as other:
        expected = other.generate(Request(**CAT, image=PIXELS)).arrays
    assert np.abs(painted.arrays.astype(int) - expected).max() <= 1
    assert shown[0].shape == (1, 16, 16, 3)
    assert shelf.cuda.alive == 0


def test_without_them_text_paints_and_the_rest_names_the_build(shelf):
    for name in ("encoder", "preview"):
        (shelf.plans / f"{name}.plan").unlink()
        (shelf.plans / f"{name}.plan.json").unlink()
    with Pipeline.load(shelf.folder, "tensorrt", precision="fp32") as pipeline:
        with pytest.raises(PlanMissing, match=r"encoder\.plan.*zturbo build .*--profiles 128@2"):
            pipeline.generate(Request(**CAT, image=PIXELS))
        with pytest.raises(PlanMissing, match=r"preview\.plan.*zturbo build"):
            pipeline.generate(Request(**CAT), lambda step: step.preview())
        assert pipeline.generate(Request(**CAT)).arrays.any()
