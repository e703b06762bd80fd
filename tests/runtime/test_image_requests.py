"""Requests with an image and a mask on the fake backend: where they begin, what stays, what they cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from engine.bundle import load_bundle
from engine.errors import OptionInvalid, PlanMissing, RequestInvalid
from runtime.noise import draws, encoder_noise
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.fake_backend import FakeBackend, encoder, preview
from tests.fake_bundle import COLUMNS, edit, sigmas, table

SHAPE = (4, 16, 17)
PIXELS = np.random.default_rng(0).integers(0, 256, (128, 136, 3)).astype(np.uint8)
MASK = np.zeros((128, 136), np.uint8)
MASK[32:96, 40:] = 255
KEPT = MASK[::8, ::8] == 0
CAT = {"prompt": "a cat", "image": PIXELS, "seed": 5}


def run(pipeline, **fields):
    """The latents after each step."""
    seen = []
    pipeline.generate(Request(**{**CAT, **fields}), lambda step: seen.append(step.latents()))
    return seen


def image_latents(seed=5, image=0):
    return encoder(PIXELS[None], encoder_noise(seed, image, SHAPE)[None])[0]


@pytest.mark.parametrize(("strength", "steps", "made"), [
    (None, 10, 8), (0.8, 10, 8), (1, 10, 10), (1.0, 1, 1), (0.3, 10, 3), (0.1, 10, 1), (0.5, 3, 1), (0.999, 4, 3),
])  # fmt: skip
def test_strength_says_how_many_steps_are_made(pipeline, strength, steps, made):
    seen = run(pipeline, strength=strength, num_inference_steps=steps)
    assert len(seen) == made


@pytest.mark.parametrize(("strength", "steps", "made"), [
    (None, 8, 7), (0.8, 10, 8), (1, 10, 10), (0.3, 10, 3), (0.5, 3, 2), (0.999, 4, 4), (0.01, 8, 1),
])  # fmt: skip
def test_of_a_flow_a_strength_that_ends_within_a_step_makes_it(own_bundle, strength, steps, made):
    edit(own_bundle, lambda body: body["tables"].update(part_counts=True))
    pipeline = Pipeline(own_bundle, load_bundle(own_bundle), FakeBackend())
    assert len(run(pipeline, strength=strength, num_inference_steps=steps)) == made


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_it_begins_from_the_image_with_the_noise_of_its_first_step(pipeline, strength):
    pipeline.generate(Request(**CAT, strength=strength, num_inference_steps=10, scheduler="euler"))
    level = sigmas(10)[10 - round(10 * strength)]
    expected = image_latents() + np.float32(level) * draws(5, 0, 1, SHAPE)
    wiring = next(iter(pipeline._wirings._kept.values()))
    wiring.launch("once")
    np.testing.assert_allclose(wiring.read("latents"), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheduler", ["euler", "ancestral", "multistep"])
@pytest.mark.parametrize("strength", [0.5, None])
def test_under_the_mask_is_painted_and_elsewhere_is_the_image(pipeline, scheduler, strength):
    seen = run(pipeline, mask=MASK, strength=strength, num_inference_steps=6, scheduler=scheduler)
    for latents, row in zip(seen, table(scheduler, 6)[-len(seen) :], strict=True):
        u, v = (row[COLUMNS.index(column)] for column in "uv")
        known = u * image_latents() + v * draws(5, 0, 1, SHAPE)
        np.testing.assert_allclose(latents[:, :, KEPT], known[:, :, KEPT], rtol=1e-6, atol=1e-6)
    assert not np.isclose(seen[-1][:, :, ~KEPT], image_latents()[:, :, ~KEPT]).any()


def test_a_mask_of_white_alone_begins_as_text_does_and_paints_what_it_paints(pipeline):
    white = Image.new("L", (10, 10), 255)
    assert np.array_equal(run(pipeline, mask=white)[-1], run(pipeline, image=None)[-1])


def test_the_encoders_noise_is_a_stream_of_its_own():
    one = encoder_noise(5, 0, SHAPE)
    assert np.array_equal(one, encoder_noise(5, 0, SHAPE))
    others = [*draws(5, 0, 100, SHAPE), encoder_noise(5, 1, SHAPE), encoder_noise(6, 0, SHAPE)]
    assert max(abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for other in others) < 0.15
    assert abs(one.std() - 1) < 0.1


REQUESTS = [
    Request(prompt="a cat", seed=1, num_inference_steps=5),
    Request(**CAT, strength=0.4, num_inference_steps=20, scheduler="ancestral", num_images=2),
    Request(**CAT, mask=MASK, strength=0.9, num_inference_steps=3),
    Request(**CAT, mask=MASK, num_inference_steps=9, guidance_scale=1, scheduler="ancestral"),
    Request(prompt="b", seed=1, num_inference_steps=12, scheduler="ancestral"),
]


@pytest.mark.parametrize("max_rows", [2, 5, 32])
def test_any_batch_paints_what_each_request_paints_alone(make_pipeline, max_rows):
    alone = [make_pipeline().generate(request).arrays for request in REQUESTS]
    pipeline = make_pipeline(max_rows=max_rows)
    for _ in range(2):
        for one, result in zip(alone, pipeline.generate_many(REQUESTS), strict=True):
            assert np.array_equal(one, result.arrays)


def test_only_batches_with_an_image_run_the_encoder(make_pipeline):
    pipeline = make_pipeline(max_rows=2)
    pipeline.generate_many(REQUESTS)
    assert pipeline.backend.events.count("encoder") == 4  # of 6 batches
    pipeline.backend.events.clear()
    pipeline.generate(Request(prompt="a cat"))
    assert "encoder" not in pipeline.backend.events


def test_metadata_names_pictures_by_their_shapes(pipeline):
    found = pipeline.generate(Request(**{**CAT, "image": Image.new("RGBA", (30, 20))}, mask=MASK)).metadata
    assert json.loads(json.dumps(found))["image"] == [20, 30, 4]
    assert (found["mask"], found["strength"]) == ([128, 136], 1.0)
    assert pipeline.generate(Request(**CAT)).metadata["strength"] == 0.8


def test_a_step_shows_a_preview(pipeline):
    shown = []
    request = Request(prompt="a cat", num_images=2, num_inference_steps=3)

    def look(step):
        pair = step.preview(), step.latents()
        assert np.array_equal(pair[0], step.preview())
        shown.append((step, *pair))

    plain, looked = pipeline.generate(request), pipeline.generate(request, look)
    assert np.array_equal(plain.arrays, looked.arrays)
    for _, small, latents in shown:
        assert small.dtype == np.uint8
        assert small.shape == (2, 16, 17, 3)
        assert np.array_equal(small, preview(latents)[0])
    with pytest.raises(OptionInvalid, match="step 3, preview: got a step that is over"):
        shown[-1][0].preview()


class Planless(FakeBackend):
    """Has no plan for these graphs."""

    def bind(self, graph, buffers, dims):
        if graph.optional:
            raise PlanMissing(f"{graph.name}.plan", actual="no plan", allowed="one", remedy="Run `zturbo build`.")
        return super().bind(graph, buffers, dims)


def test_without_plans_for_it_an_image_is_a_typed_error_before_anything_is_painted(bundle_folder):
    with Pipeline(bundle_folder, load_bundle(bundle_folder), Planless(max_rows=2)) as pipeline:
        for requests in ([Request(**CAT)], [Request(prompt="a cat"), Request(**CAT)]):
            with pytest.raises(PlanMissing, match=r"encoder\.plan.*zturbo build"):
                pipeline.generate_many(requests)
        assert pipeline.backend.events == []
        with pytest.raises(PlanMissing, match=r"preview\.plan"):
            pipeline.generate(Request(prompt="a cat"), lambda step: step.preview())
        assert pipeline.generate(Request(prompt="a cat")).arrays.any()


def without(*names):
    """A change to a bundle that leaves graphs out."""

    def change(body):
        for graphs in body["variants"].values():
            graphs[:] = [one for one in graphs if one["name"] not in names]
            for one in graphs:
                one["inputs"] = [binding for binding in one["inputs"] if binding["name"] != "image_latents"]

    return change


def test_a_bundle_without_these_graphs_says_so(own_bundle):
    edit(own_bundle, without("encoder", "preview"))
    with Pipeline(own_bundle, load_bundle(own_bundle), FakeBackend()) as pipeline:
        with pytest.raises(RequestInvalid, match="request, image: got an image; allowed: None: bundle 'fake' has no"):
            pipeline.generate(Request(**CAT))
        with pytest.raises(OptionInvalid, match="step 1, preview: got a bundle without a graph for it"):
            _only_previews(pipeline)


def _only_previews(pipeline):
    """Ask a step of a loop that is never run: its graphs lack a wire that numpy's read."""
    from runtime.denoise import Step

    wiring = pipeline._wirings.get({"samples": 1, "rows": 2, "height": 128, "width": 136, "tokens": 77, "draws": 1})
    Step(1, 1, wiring, wiring.moment).preview()


ERRORS = {
    "a mask without an image": ({"image": None, "mask": MASK}, "request, mask: got a mask without an image"),
    "strength without an image": (
        {"image": None, "strength": 0.5},
        "request, strength: got a strength without an image",
    ),
    "a strength of 0": ({"strength": 0}, "request, strength: got 0; allowed: a number above 0, to 1"),
    "a strength above 1": ({"strength": 1.01}, "request, strength: got 1.01"),
    "no number": ({"strength": float("nan")}, "request, strength: got nan"),
    "a word": ({"strength": "0.5"}, "request, strength: got '0.5'"),
    "a truth": ({"strength": True}, "request, strength: got True"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_a_request_cannot_be(name):
    fields, message = ERRORS[name]
    with pytest.raises(RequestInvalid) as caught:
        Request(**{**CAT, **fields})
    assert str(caught.value).startswith(message)


def test_a_strength_that_leaves_no_step_is_refused(pipeline):
    with pytest.raises(RequestInvalid, match=r"strength with 3 steps: got 0.3; allowed: 0.333 to 1"):
        pipeline.generate(Request(**CAT, strength=0.3, num_inference_steps=3))
    assert pipeline.backend.events == []
