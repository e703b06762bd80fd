"""The pipeline on the fake backend: the same pictures alone, together, split, cancelled and from two threads."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from engine.errors import OptionInvalid, RequestInvalid
from runtime.noise import draws
from runtime.pipeline import STAGES, Pipeline
from runtime.request import Request
from tests.fake_backend import GRAPHS, FakeBackend, conditioning, decoder, denoiser
from tests.fake_bundle import sigmas, tokenizer

MIXED = [
    Request(prompt="a cat", seed=1, guidance_scale=4, num_inference_steps=5, scheduler="euler"),
    Request(prompt="a pizza", seed=2, guidance_scale=1, num_inference_steps=1, scheduler="ancestral"),
    Request(prompt="car", negative_prompt="b", seed=3, guidance_scale=9, num_inference_steps=12, scheduler="ancestral"),
    Request(prompt="a cat", seed=1, guidance_scale=0, num_inference_steps=7, scheduler="multistep", num_images=3),
    Request(prompt="a dog", seed=2**63 - 1, guidance_scale=1.5, num_inference_steps=100, scheduler="multistep"),
]  # fmt: skip


def by_hand(prompt, negative, guidance, steps, seed):
    """Euler written as a loop over one picture, in float64, without tables, rows or batches."""
    ids = np.ones((2, 77), np.int32)
    for row, text in zip(ids, (prompt, negative), strict=True):
        found = tokenizer().encode(text).ids
        row[: len(found) + 1] = [0, *found]
    hidden = conditioning(ids, np.ones((2, 77), np.float32), np.zeros(2, np.int32))[0]
    levels = sigmas(steps)
    x = levels[0] * draws(seed, 0, 1, (4, 16, 17)).astype(np.float64)
    for now, after in pairwise(levels):
        both = np.concatenate([x, x]) / np.sqrt(now**2 + 1)
        cond, uncond = denoiser(both, np.full(2, 1000 * now / 14), hidden)[0]
        x = x + (after - now) * (uncond + guidance * (cond - uncond))
    return x


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_pictures_are_those_of_a_loop_by_hand(pipeline, steps):
    last = []
    request = Request(prompt="a cat", negative_prompt="no", guidance_scale=3, num_inference_steps=steps, seed=5)
    result = pipeline.generate(request, lambda step: last.append(step.latents()))
    expected = by_hand("a cat", "no", 3.0, steps, 5)
    assert np.abs(last[-1] - expected).max() <= 1e-5 * np.abs(expected).max()  # float32 against float64
    assert np.array_equal(result.arrays, decoder(last[-1])[0])


def test_a_batch_paints_what_each_request_paints_alone(make_pipeline):
    alone = [make_pipeline().generate(request).arrays for request in MIXED]
    together = make_pipeline(max_rows=32).generate_many(MIXED)
    assert all(np.array_equal(one, result.arrays) for one, result in zip(alone, together, strict=True))
    assert len({arrays.tobytes() for arrays in alone}) == len(MIXED)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 5, 8])
def test_splitting_changes_no_picture(make_pipeline, max_rows):
    whole = make_pipeline(max_rows=64).generate_many(MIXED)
    pipeline = make_pipeline(max_rows=max_rows)
    parts = pipeline.generate_many(MIXED)
    assert all(np.array_equal(a.arrays, b.arrays) for a, b in zip(whole, parts, strict=True))
    assert pipeline.backend.events.count("decoder") > 1
    assert max(dims["rows"] for dims in pipeline.backend.allocated) <= max(max_rows, 2)


@settings(max_examples=15, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_any_batch_equals_its_serial_runs(bundle_folder, data):
    one = st.builds(
        Request, prompt=st.sampled_from(["a", "(cat)", "x" * 200, "x" * 300, "a BREAK [b"]),
        negative_prompt=st.sampled_from(["", "b", "y " * 60]), clip_skip=st.sampled_from([None, 0, 1]),
        emphasis=st.booleans(),
        seed=st.integers(0, 2**63 - 1), guidance_scale=st.sampled_from([0, 1, 2.5]), num_images=st.integers(1, 2),
        num_inference_steps=st.integers(1, 9), scheduler=st.sampled_from(["euler", "ancestral", "multistep"]),
    )  # fmt: skip
    requests = data.draw(st.lists(one, min_size=1, max_size=4))
    backend = FakeBackend(max_rows=data.draw(st.integers(1, 16)))
    with Pipeline(bundle_folder, load_bundle(bundle_folder), backend) as pipeline:
        together = pipeline.generate_many(requests)
        for request, result in zip(requests, together, strict=True):
            assert np.array_equal(pipeline.generate(request).arrays, result.arrays)


def test_prompts_of_other_lengths_change_no_picture_and_no_order(make_pipeline):
    """One to three chunks, each length a batch of its own; a short prompt is padded for its own negative one alone."""
    texts = ["a", "x" * 100, "b", "y" * 200, "x" * 100, "c"]
    requests = [Request(prompt=text, seed=k, num_inference_steps=2) for k, text in enumerate(texts)]
    requests.append(Request(prompt="a", negative_prompt="z" * 80, num_inference_steps=2))
    alone = [make_pipeline().generate(request).arrays for request in requests]
    pipeline = make_pipeline(max_rows=16)
    seen = []
    together = pipeline.generate_many(requests, lambda step: seen.append((step.index, step.total)))
    assert all(np.array_equal(one, result.arrays) for one, result in zip(alone, together, strict=True))
    assert pipeline.backend.events.count("conditioning") == 3
    assert seen == [(k, 6) for k in range(1, 7)]
    assert {dims["tokens"] for dims in pipeline.backend.allocated} == {77, 154, 231}
    assert len({arrays.tobytes() for arrays in alone}) == len(requests)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a (cat)"}, {"prompt": "a cat"}), ({"prompt": "a (cat)"}, {"prompt": "a (cat)", "emphasis": False}),
        ({"prompt": "a cat"}, {"prompt": "a cat", "clip_skip": 1}), ({"prompt": "a b"}, {"prompt": "a BREAK b"}),
        ({"prompt": "a", "negative_prompt": "(b)"}, {"prompt": "a", "negative_prompt": "b"}),
    ],
)  # fmt: skip
def test_emphasis_and_clip_skip_change_the_picture(pipeline, one, other):
    pictures = [pipeline.generate(Request(num_inference_steps=2, **asked)).arrays for asked in (one, other)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a (cat:1)"}, {"prompt": "a cat"}),
        ({"prompt": r"a \(cat\)"}, {"prompt": "a (cat)", "emphasis": False}),
        ({"prompt": "a cat"}, {"prompt": "a cat", "clip_skip": 0}),
    ],
)  # fmt: skip
def test_what_asks_for_nothing_changes_nothing(pipeline, one, other):
    pictures = [pipeline.generate(Request(num_inference_steps=2, **asked)).arrays for asked in (one, other)]
    assert np.array_equal(*pictures)


def test_image_i_is_the_same_in_any_number_of_images(pipeline):
    five = pipeline.generate(Request(prompt="a cat", num_images=5, num_inference_steps=2)).arrays
    two = pipeline.generate(Request(prompt="a cat", num_images=2, num_inference_steps=2)).arrays
    assert five.shape == (5, 128, 136, 3)
    assert np.array_equal(five[:2], two)
    assert len({picture.tobytes() for picture in five}) == 5


def test_given_noise_replaces_the_seeds(pipeline):
    common = {"prompt": "a cat", "num_inference_steps": 4, "scheduler": "ancestral", "num_images": 2}
    banks = np.stack([draws(7, image, 4, (4, 16, 17)) for image in range(2)])
    seeded = pipeline.generate(Request(seed=7, **common)).arrays
    given_both = Request(seed=8, latents=banks[:, 0], noise=banks[:, 1:], **common)
    assert np.array_equal(pipeline.generate(given_both).arrays, seeded)
    given_one = pipeline.generate(Request(seed=8, latents=banks[:, 0], **common)).arrays
    assert not np.array_equal(given_one, seeded)
    assert not np.array_equal(given_one, pipeline.generate(Request(seed=8, **common)).arrays)


def test_results_tell_what_was_asked_and_what_ran_it(pipeline):
    result = pipeline.generate(Request(prompt="x" * 230, seed=np.int64(4), guidance_scale=np.float32(2.5)))
    assert json.loads(json.dumps(result.metadata)) == result.metadata == {
        "prompt": "x" * 230, "negative_prompt": "", "height": 128, "width": 136, "num_inference_steps": 3,
        "guidance_scale": 2.5, "scheduler": "euler", "eta": None, "seed": 4, "num_images": 1, "latents": None,
        "noise": None, "image": None, "mask": None, "strength": None, "loras": [], "clip_skip": 0, "emphasis": True,
        "original_size": None, "crops_coords_top_left": [0, 0], "target_size": None,
        "dropped_tokens": {"prompt": 5, "negative_prompt": 0}, "bundle": "fake",
        "bundle_sha256": pipeline.bundle.sha256, "backend": "fake", "device": "numpy", "precision": "fp32",
        "captured": True, "conditioning_cached": False,
    }  # fmt: skip
    assert list(result.seconds) == list(STAGES)
    assert all(value > 0 for value in result.seconds.values())
    stages = sum(result.seconds[stage] for stage in STAGES if stage != "total")
    assert stages <= result.seconds["total"] <= stages + 0.1
    assert result.arrays.dtype == np.uint8
    assert [image.size for image in result.images] == [(136, 128)]


def test_the_fp16_variant_runs_too(make_pipeline):
    result = make_pipeline(precision="fp16").generate(Request(prompt="a cat"))
    assert result.metadata["precision"] == "fp16"


def test_steps_come_in_order_and_graphs_do_too(pipeline):
    seen = []
    pipeline.generate(
        Request(prompt="a cat", num_inference_steps=4), lambda step: seen.append((step.index, step.total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    graphs = [event for event in pipeline.backend.events if event.isalpha()]
    assert graphs == ["conditioning", "start", *["denoiser", "solver"] * 4, "decoder"]


def test_each_turn_of_the_loop_is_captured_and_nothing_else(pipeline):
    pipeline.generate(Request(prompt="a cat", num_inference_steps=4))
    assert pipeline.backend.captures.captured == 2


def test_the_host_is_at_most_two_steps_ahead(pipeline):
    ahead = []

    def count(step):
        events = pipeline.backend.events
        marks, waits = (sum(event.startswith(word) for event in events) for word in ("mark", "wait"))
        ahead.append(marks - waits)

    pipeline.generate(Request(prompt="a cat", num_inference_steps=6), count)
    assert ahead == [1, 2, 2, 2, 2, 2]
    assert pipeline.backend.events[-1] == "decoder"


def test_a_step_that_was_kept_shows_no_other_requests_latents(pipeline):
    """Not where the next request came to the same step, nor after one that was stopped."""
    kept, request = [], Request(prompt="a cat", num_inference_steps=2)

    def stop(step):
        kept.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(request, stop)
    with pytest.raises(OptionInvalid, match="a step that is over"):
        kept[0].latents()

    def compare(step):
        step.latents()
        for earlier in kept:
            with pytest.raises(OptionInvalid, match="a step that is over"):
                earlier.latents()
        kept.append(step)

    pipeline.generate(request, compare)


def test_raising_in_on_step_ends_the_request_and_no_more(make_pipeline):
    pipeline, request = make_pipeline(), Request(prompt="a cat", num_inference_steps=10, scheduler="ancestral")

    def stop(step):
        if step.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(request, stop)
    events = pipeline.backend.events
    assert events.count("denoiser") == 4
    assert "decoder" not in events
    assert {event[5:] for event in events if "mark" in event} == {event[5:] for event in events if "wait" in event}
    assert np.array_equal(pipeline.generate(request).arrays, make_pipeline().generate(request).arrays)


def test_a_failing_graph_leaves_the_pipeline_usable(make_pipeline, monkeypatch):
    pipeline, request = make_pipeline(), Request(prompt="a cat", num_inference_steps=3)
    calls = []

    def failing(*inputs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a vendor's")
        return denoiser(*inputs)

    monkeypatch.setitem(GRAPHS, "denoiser", failing)
    with pytest.raises(RuntimeError, match="a vendor's"):
        pipeline.generate(request)
    assert np.array_equal(pipeline.generate(request).arrays, make_pipeline().generate(request).arrays)


@pytest.mark.parametrize("call", ["generate", "close"])
def test_a_call_from_within_on_step_is_refused_and_does_not_hang(pipeline, call):
    request = Request(prompt="a cat")
    inner = {"generate": lambda step: pipeline.generate(request), "close": lambda step: pipeline.close()}[call]
    with pytest.raises(OptionInvalid, match="a call from within on_step"):
        pipeline.generate(request, inner)
    assert pipeline.generate(request).arrays.any()


def test_a_bad_request_runs_nothing(pipeline):
    good = Request(prompt="a cat")
    for bad in ([], [good, Request(prompt="a cat", scheduler="none")], [good, Request(prompt="a", height=256)]):
        with pytest.raises(RequestInvalid):
            pipeline.generate_many(bad)
    assert pipeline.backend.events == []


def test_nothing_runs_after_close(pipeline):
    with pipeline:
        pipeline.generate(Request(prompt="a cat"))
    pipeline.close()
    assert pipeline.backend.events.count("close") == 1
    for steps in (3, 50):
        with pytest.raises(OptionInvalid, match="pipeline 'fake': got closed; allowed: an open pipeline"):
            pipeline.generate(Request(prompt="a cat", num_inference_steps=steps))


def test_with_closes_when_its_block_fails(pipeline):
    with pytest.raises(ZeroDivisionError), pipeline:
        raise ZeroDivisionError
    assert pipeline.backend.events == ["close"]


def test_threads_take_turns(make_pipeline):
    requests = [
        Request(prompt=f"cat {k}", seed=k, num_inference_steps=1 + k % 5, scheduler="ancestral") for k in range(12)
    ]
    expected = [make_pipeline().generate(request).arrays for request in requests]
    pipeline, found = make_pipeline(), {}

    def work(part):
        for k in part:
            found[k] = pipeline.generate(requests[k]).arrays

    threads = [threading.Thread(target=work, args=(range(start, 12, 2),)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(np.array_equal(found[k], expected[k]) for k in range(12))


def test_close_waits_for_the_request_that_runs(pipeline):
    started, go = threading.Event(), threading.Event()

    def hold(step):
        started.set()
        assert go.wait(30)

    results = []
    painter = threading.Thread(target=lambda: results.append(pipeline.generate(Request(prompt="a cat"), hold)))
    closer = threading.Thread(target=pipeline.close)
    painter.start()
    assert started.wait(30)
    closer.start()
    go.set()
    painter.join(30)
    closer.join(30)
    assert len(results) == 1
    assert pipeline.backend.events[-2:] == ["decoder", "close"]


def test_buffers_of_few_shapes_stay(pipeline):
    request = Request(prompt="a cat", num_inference_steps=1)
    pipeline.generate(request)
    count = len(pipeline.backend.allocated)
    pipeline.generate(request)
    assert len(pipeline.backend.allocated) == count
