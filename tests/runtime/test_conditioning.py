"""Conditioning that is kept: found by data, restored exactly, bounded in bytes, and told."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from engine.binding import Binding, Graph
from engine.bundle import load_bundle
from engine.errors import ExecutionFailed
from runtime.conditioning import ConditioningCache, conditioning_graphs, kept_wires, read_wires
from runtime.memory import Wiring
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.fake_backend import FakeBackend, FakeBuffer
from tests.fake_bundle import MAX_TOKENS, SIGNATURES, WIDTH, graph

DIMS = {"samples": 2, "rows": 3, "height": 128, "width": 136, "tokens": MAX_TOKENS, "draws": 1}
GRAPHS = [graph(name, "fp32") for name in SIGNATURES]
ROW_BYTES = MAX_TOKENS * WIDTH * 4


@pytest.fixture
def make(bundle_folder):
    """A pipeline on a FakeBackend, with cache_mib and the like."""
    bundle = load_bundle(bundle_folder)
    return lambda **options: Pipeline(bundle_folder, bundle, FakeBackend(max_rows=16), **options)


def made_graph(name, inputs, outputs, stage="once", lifetime="per_row", first="rows"):
    def bindings(names):
        return tuple(Binding(name=one, dtype="float32", shape=(first, 4), lifetime=lifetime) for one in names.split())

    return Graph(
        name=name, stage=stage, file=name, precision="fp32", inputs=bindings(inputs), outputs=bindings(outputs)
    )


def test_the_graphs_are_found_by_what_they_depend_on():
    """By the lifetime and the first axis of what the host feeds, whatever it is called."""
    graphs = [
        made_graph("one", "input_ids", "hidden pooled"),
        made_graph("two", "input_ids pooled", "added"),
        made_graph("loose", "words", "letters"),
        made_graph("start", "noise", "latents", lifetime="per_sample"),
        made_graph("mixed", "hidden latents", "blend"),
        made_graph("whole", "hidden", "scalar", first=1),
        made_graph("passing", "hidden", "gone", lifetime="transient"),
        made_graph("prologue", "hidden added", "k v"),
        made_graph("denoiser", "k v hidden latents", "out", stage="loop"),
        made_graph("again", "input_ids", "late", stage="final"),
    ]
    found = conditioning_graphs(graphs)
    assert [one.name for one in found] == ["one", "two", "loose", "prologue"]
    assert kept_wires(graphs, found) == ["hidden", "k", "v"]
    assert read_wires(found) == ["input_ids", "words"]


def test_of_the_fake_bundle_it_is_the_text_encoder():
    found = conditioning_graphs(GRAPHS)
    assert [one.name for one in found] == ["conditioning"]
    assert read_wires(found) == ["input_ids", "token_weights", "clip_skip"]


def launches(pipeline):
    return pipeline.backend.events.count("conditioning")


def test_a_prompt_that_comes_again_is_not_encoded_again_and_gives_the_same_picture(make):
    pipeline = make()
    requests = [Request(prompt=prompt, num_inference_steps=2) for prompt in ("a cat", "a dog", "a cat", "a dog")]
    results = [pipeline.generate(request) for request in requests]
    assert launches(pipeline) == 2
    assert [one.metadata["conditioning_cached"] for one in results] == [False, False, True, True]
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(result.arrays, make(cache_mib=0).generate(request).arrays)
    assert all(result.seconds["conditioning"] > 0 for result in results)
    assert pipeline.backend.events.count("start") == 4


def test_a_key_is_the_ids_and_not_the_text(make):
    pipeline = make()
    pipeline.generate(Request(prompt="x" * 226, num_inference_steps=1))
    pipeline.generate(Request(prompt="x" * 300, num_inference_steps=1))  # cut to the same 3 · 75 tokens
    assert launches(pipeline) == 1


def test_a_key_is_the_weights_and_the_layers_skipped_too(make):
    """Each differs from those before in one of them; the second time round all are kept."""
    pipeline = make()
    asked = [{"prompt": "a cat"}, {"prompt": "a (cat)"}, {"prompt": "a cat", "clip_skip": 1}, {"prompt": "(a) cat"}]
    requests = [Request(num_inference_steps=1, **one) for one in asked]
    results = [pipeline.generate(request) for request in [*requests, *requests]]
    assert launches(pipeline) == 4
    assert [one.metadata["conditioning_cached"] for one in results] == [False] * 4 + [True] * 4
    assert len({one.arrays.tobytes() for one in results}) == 4
    pipeline.generate(Request(prompt="a cat", emphasis=False, clip_skip=0, num_inference_steps=1))
    assert launches(pipeline) == 4


def test_a_batch_of_another_shape_is_computed_anew(make):
    pipeline = make()
    common = {"prompt": "a cat", "num_inference_steps": 1}
    pipeline.generate(Request(**common))
    for other in ({"num_images": 2}, {"guidance_scale": 1.0}, {"height": 256}):
        before = launches(pipeline)
        pipeline.generate(Request(**common, **other))
        assert launches(pipeline) == before + 1
    pipeline.generate(Request(prompt="a cat", num_inference_steps=9, scheduler="ancestral"))  # another noise bank only
    assert launches(pipeline) == 4


def test_all_rows_of_a_batch_must_be_kept(make):
    pipeline = make()
    cat, dog, owl = (Request(prompt=prompt, num_inference_steps=1) for prompt in ("cat", "dog", "owl"))
    pipeline.generate_many([cat, dog])
    pipeline.generate_many([dog, owl])
    assert launches(pipeline) == 2
    swapped = pipeline.generate_many([owl, cat])
    assert launches(pipeline) == 2
    fresh = make().generate_many([owl, cat])
    assert all(np.array_equal(a.arrays, b.arrays) for a, b in zip(swapped, fresh, strict=True))


def test_a_row_is_kept_once(make):
    pipeline = make()
    pipeline.generate(Request(prompt="a cat", num_images=8, num_inference_steps=1))
    assert pipeline._conditioning.size_bytes == 2 * ROW_BYTES  # the prompt, and the negative one
    pipeline.close()
    assert pipeline._conditioning.size_bytes == 0


def test_without_a_cache_nothing_is_kept(make):
    pipeline = make(cache_mib=0)
    for _ in range(2):
        result = pipeline.generate(Request(prompt="a cat", num_inference_steps=1))
    assert launches(pipeline) == 2
    assert not result.metadata["conditioning_cached"]
    assert pipeline._conditioning.size_bytes == 0


def ids_of(*rows):
    return np.array([[row] * MAX_TOKENS for row in rows], np.int32)


@pytest.fixture
def wiring():
    backend = FakeBackend()
    conditioning = conditioning_graphs(GRAPHS)
    wires = kept_wires(GRAPHS, conditioning), read_wires(conditioning)
    made = Wiring(backend, GRAPHS, DIMS, conditioning, *wires)
    made.backend = backend
    return made


def condition(cache, wiring, *rows):
    arrays = {
        "input_ids": ids_of(*rows), "token_weights": np.ones((3, MAX_TOKENS), np.float32),
        "clip_skip": np.zeros(3, np.int32),
    }  # fmt: skip
    wiring.write(arrays)
    return cache.condition(wiring, arrays)


def test_the_least_recently_used_row_goes_first(wiring):
    cache = ConditioningCache(4 * ROW_BYTES + 1)
    assert not condition(cache, wiring, 1, 2, 3)
    assert not condition(cache, wiring, 4, 4, 4)
    assert condition(cache, wiring, 1, 1, 1)
    assert not condition(cache, wiring, 5, 5, 5)
    assert cache.size_bytes == 4 * ROW_BYTES
    assert condition(cache, wiring, 1, 4, 5)
    assert not condition(cache, wiring, 2, 2, 2)


def test_a_row_larger_than_the_whole_cache_is_not_kept(wiring):
    cache = ConditioningCache(ROW_BYTES - 1)
    assert not condition(cache, wiring, 1, 1, 1)
    assert not condition(cache, wiring, 1, 1, 1)
    assert cache.size_bytes == 0


def test_a_buffer_that_cannot_be_saved_is_no_hindrance(wiring, monkeypatch):
    monkeypatch.setattr(FakeBuffer, "save_row", lambda self, index: None)
    cache = ConditioningCache(1 << 20)
    assert not condition(cache, wiring, 1, 2, 3)
    assert not condition(cache, wiring, 1, 2, 3)
    assert cache.size_bytes == 0


def test_a_gpu_without_memory_for_it_keeps_none_and_paints_on(wiring, monkeypatch, caplog):
    cache = ConditioningCache(1 << 20)
    condition(cache, wiring, 1, 2, 3)

    def full(self, index):
        raise ExecutionFailed("CUDA, cudaMalloc", actual="out of memory", allowed="success", remedy="Free some.")

    monkeypatch.setattr(FakeBuffer, "save_row", full)
    assert not condition(cache, wiring, 4, 5, 6)
    assert cache.size_bytes == 0
    assert "not kept: out of memory" in caplog.text
    assert wiring.backend.events.count("conditioning") == 2


def test_dropped_rows_are_freed(wiring):
    import weakref

    cache = ConditioningCache(3 * ROW_BYTES)
    condition(cache, wiring, 1, 2, 3)
    rows = [weakref.ref(one.array) for saved in cache._kept.values() for one in saved]
    condition(cache, wiring, 4, 5, 6)
    gc.collect()
    assert [row() for row in rows] == [None] * 3
