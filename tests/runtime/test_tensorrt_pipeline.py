"""Requests to pictures through the TensorRT backend on the fakes: captured, cached, and nothing left behind."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import load_bundle
from engine.errors import ShapeOutsideProfile
from runtime.conditioning import conditioning_graphs
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests import fake_engine
from tests.fake_plans import Shelf

pytest.importorskip("onnxruntime")
CAT = {"prompt": "a cat", "height": 128, "width": 128, "num_inference_steps": 5, "guidance_scale": 3.0}


@pytest.fixture
def shelf(monkeypatch, tmp_path, tiny_bundle):
    made = Shelf(monkeypatch, Path(shutil.copytree(tiny_bundle, tmp_path / "tiny", copy_function=shutil.copy)))
    made.put("128@2-4", precision="fp32")
    return made


def load(shelf, **options) -> Pipeline:
    return Pipeline.load(shelf.folder, "tensorrt", precision="fp32", **options)


def test_captured_and_cached_pictures_are_the_plain_ones(shelf):
    request = Request(**CAT)
    with load(shelf, capture=False, cache_mib=0) as plain:
        wanted = plain.generate(request)
        assert not wanted.metadata["captured"]
    with Pipeline.load(shelf.folder, "onnxruntime", precision="fp32", threads=1) as other:
        assert np.abs(other.generate(request).arrays.astype(int) - wanted.arrays.astype(int)).max() <= 1
    with load(shelf) as pipeline:
        results = [pipeline.generate(request) for _ in range(3)]
        others = pipeline.generate(Request(**{**CAT, "prompt": "a dog"}))
    assert all(np.array_equal(one.arrays, wanted.arrays) for one in results)
    assert not np.array_equal(others.arrays, wanted.arrays)
    assert [one.metadata["captured"] for one in results] == [True] * 3
    assert [one.metadata["conditioning_cached"] for one in results] == [False, True, True]
    assert not others.metadata["conditioning_cached"]


def test_closing_frees_all_at_once(shelf):
    """With nothing left to the garbage collector, and though the pipeline and its last result are still held."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            pipeline = load(shelf)
            result = pipeline.generate(Request(**CAT), on_step=lambda step: step.latents())
            pipeline.close()
            assert shelf.cuda.alive == 0
            assert not fake_engine.ALIVE
    finally:
        gc.enable()
    assert result.arrays.any()


def test_a_prompt_that_comes_again_launches_no_conditioning_and_copies_nothing_to_the_host(shelf, monkeypatch):
    graphs = load_bundle(shelf.folder).graphs("fp32")
    skipped = {graph.name for graph in conditioning_graphs(graphs)}
    assert "start" not in skipped
    with load(shelf) as pipeline:
        pipeline.generate(Request(**CAT))
        launched = []
        for wiring in pipeline._wirings._kept.values():
            real = wiring.launch
            monkeypatch.setattr(wiring, "launch", lambda phase, real=real: (launched.append(phase), real(phase)))
        shelf.cuda.calls.clear()
        pipeline.generate(Request(**CAT))
    assert launched == ["once", *["loop"] * 5, "final"]
    before = shelf.cuda.calls[: shelf.cuda.calls.index("cudaGraphLaunch")]
    assert before.count("cudaStreamSynchronize") == 0


def test_long_prompts_need_a_profile_with_their_tokens(shelf):
    """One chunk runs where a prompt of two does not; then both run, and in one call as each does alone."""
    short = Request(**{**CAT, "num_inference_steps": 2})
    long = Request(**{**CAT, "num_inference_steps": 2, "prompt": "a cat " * 40})  # 80 tokens
    with load(shelf) as pipeline:
        assert pipeline.generate(short).arrays.any()
        with pytest.raises(ShapeOutsideProfile, match=r"tokens 154; .*--profiles 128@2t154 --precision fp32"):
            pipeline.generate(long)
    shelf.put("128@2t77-231", precision="fp32")
    with load(shelf) as pipeline:
        alone = [pipeline.generate(request).arrays for request in (long, short)]
        together = pipeline.generate_many([long, short])
    assert all(np.array_equal(one, result.arrays) for one, result in zip(alone, together, strict=True))
    assert not np.array_equal(*alone)


def test_a_batch_that_no_division_fits_names_the_profiles(shelf):
    with load(shelf) as pipeline:
        assert len(pipeline.generate(Request(**CAT, num_images=5)).arrays) == 5  # 4, 4 and 2 rows
        with pytest.raises(ShapeOutsideProfile, match=r"the profiles 128@2-4.*--profiles 136x128@2 --precision fp32"):
            pipeline.generate(Request(**{**CAT, "width": 136}))
        with pytest.raises(ShapeOutsideProfile, match=r"rows 1, .*--profiles 128@1 --precision fp32"):
            pipeline.generate(Request(**{**CAT, "guidance_scale": 1.0}))
