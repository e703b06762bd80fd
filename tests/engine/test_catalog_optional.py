"""Plans that a picture can be painted without, of a catalog whose sets do not all have them."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.errors import PlanMissing
from engine.plan import info_path, read_info, seal
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.cut_plans import EVERY, put
from tests.fake_plans import PASSED, Shelf

DIMS = {"samples": 1, "rows": 2, "height": 64, "width": 64, "tokens": 16, "draws": 1}


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """The self-test's bundle, which has an encoder and a preview, with plans of two sets; the closer lacks them."""
    pytest.importorskip("onnxruntime")
    selftest = pytest.importorskip("zturbo.selftest_bundle")
    (tmp_path / "whole").mkdir()
    selftest.write_bundle(tmp_path / "whole")
    shelf = Shelf(monkeypatch, tmp_path / "whole", "11")
    for job in (put(shelf, "64@2", verdict=PASSED), put(shelf, EVERY, verdict=PASSED)):
        if job.profiles == ("64@2",):
            remove(job)
    return shelf


def remove(job):
    for name in ("encoder", "preview"):
        for path in job.plans[name]:
            for one in (path, f"{path}.json"):
                Path(one).unlink()


def test_an_optional_graph_is_taken_from_a_set_that_has_it(shelf):
    backend = shelf.open()
    catalog = backend._catalog
    dims = {**DIMS, "tokens": catalog.usual[0]}
    close, other = (catalog.covering(dims, name)[0].name for name in ("denoiser", "encoder"))
    assert (close, other) == ("64@2", EVERY.replace(":", "-"))
    backend.close()


def test_an_absent_plan_is_an_error_of_its_own_each_time(shelf):
    backend = shelf.open()
    plans = next(one for one in backend._catalog.sets if one.absent)
    errors = []
    for _ in range(3):
        with pytest.raises(PlanMissing) as caught:
            list(plans.read("encoder"))
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert all(error is not plans.absent["encoder"] for error in errors)
    assert str(errors[0]) == str(plans.absent["encoder"])
    backend.close()


def test_the_scratch_of_what_a_text_never_asks_for_is_not_reserved(shelf):
    backend = shelf.open()
    (plans,) = (one for one in backend._catalog.sets if not one.absent)
    for name, (path, _) in ((name, parts[0]) for name, parts in plans.plans.items()):
        needs = 9999 if name in plans.apart else 5000
        info = read_info(path, "")
        facts = msgspec.structs.replace(info.facts, scratch_bytes=needs)
        info_path(path).write_bytes(seal(msgspec.structs.replace(info, facts=facts)))
    backend.close()
    backend = shelf.open()
    assert backend._catalog.scratch_bytes == 5000
    backend.close()


def test_a_text_is_painted_without_them_and_an_image_by_the_other_sets(shelf):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Pipeline.load(shelf.folder, "tensorrt") as pipeline:
            text = Request(prompt="a test", height=64, width=64, num_inference_steps=4, guidance_scale=5.0)
            assert pipeline.generate(text).arrays.shape == (1, 64, 64, 3)

            image = Request(
                prompt="a test", height=64, width=64, num_inference_steps=4, guidance_scale=5.0, strength=1.0,
                image=np.full((64, 64, 3), 200, np.uint8),
            )  # fmt: skip
            assert pipeline.generate(image).arrays.shape == (1, 64, 64, 3)
            shown = []
            pipeline.generate(text, lambda step: shown.append(step.preview().shape))
            assert shown
