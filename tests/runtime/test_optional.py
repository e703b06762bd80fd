"""Graphs that a picture can be painted without: bound when first needed, launched where their wires are given."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import PlanMissing
from runtime.memory import Wiring
from tests.fake_backend import FakeBackend, encoder
from tests.fake_bundle import SIGNATURES, graph

DIMS = {"samples": 2, "rows": 3, "height": 128, "width": 136, "tokens": 77, "draws": 1}
GRAPHS = [graph(name, "fp32") for name in SIGNATURES]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 128, 136, 3)).astype(np.uint8)
NOISE = np.random.default_rng(1).standard_normal((2, 4, 16, 17)).astype(np.float32)
IMAGE = {"image": PIXELS, "image_noise": NOISE}


class Backend(FakeBackend):
    """Counts what is bound; `missing` graphs have no plan."""

    def __init__(self, *missing: str) -> None:
        super().__init__()
        self.bound: list[str] = []
        self.missing = missing

    def bind(self, graph, buffers, dims):
        self.bound.append(graph.name)
        if graph.name in self.missing:
            raise PlanMissing(graph.name, actual="no plan", allowed="a plan", remedy="Build it.")
        launch = super().bind(graph, buffers, dims)
        if graph.stage == "once" and graph.name != "encoder":
            return lambda: self.events.append(graph.name)  # reads tables that these tests do not write
        return launch


@pytest.fixture
def backend():
    return Backend()


def test_text_to_image_binds_none_of_them(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.write({"mask": np.ones((2, 1, 16, 17), np.float32)})
    for phase in ("conditioning", "once"):
        wiring.launch(phase)
    assert not {"encoder", "preview"} & {*backend.bound, *backend.events}


def test_an_image_is_encoded_before_all_else_of_its_stage(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.write(IMAGE)
    wiring.launch("once")
    assert backend.events[0] == "encoder"
    np.testing.assert_array_equal(wiring.read("image_latents"), encoder(**IMAGE)[0])


def test_without_an_image_what_the_encoder_makes_is_zeros_also_after_one(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.buffers["image_latents"].array[...] = np.nan  # what lies in fresh memory
    wiring.write({})
    assert not wiring.read("image_latents").any()
    for images in (IMAGE, {}, IMAGE, {}):
        backend.events.clear()
        wiring.write(images)
        wiring.launch("once")
        assert ("encoder" in backend.events) == bool(images)
        assert wiring.read("image_latents").any() == bool(images)
    assert backend.bound.count("encoder") == 1


def test_zeros_are_written_once_and_not_for_every_batch(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.write({})
    wiring.buffers["image_latents"].array[...] = 7
    wiring.write({})
    assert wiring.read("image_latents").all()


def test_a_preview_is_of_the_latents_where_they_are_now(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.buffers["latents"].array[...] = 1
    wiring.buffers["next_latents"].array[...] = 2
    for position in range(3):
        wiring.position, moment = position, wiring.moment
        wiring.launch("preview")
        assert (wiring.read("preview") == 16 * (1 + position % 2)).all()
        assert (wiring.position, wiring.moment) == (position, moment)
    assert backend.bound.count("preview") == 2


def test_a_missing_plan_is_told_where_it_is_needed_and_nothing_is_left_half_bound():
    backend = Backend("encoder", "preview")
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.write({})
    for _ in range(2):
        with pytest.raises(PlanMissing, match="encoder"):
            wiring.prepare(["image"])
        with pytest.raises(PlanMissing, match="preview"):
            wiring.launch("preview")
    assert not {"image", "preview"} & set(wiring.buffers)
    backend.missing = ()
    wiring.write(IMAGE)
    wiring.launch("once")
    assert [event for event in backend.events if event != "conditioning"] == ["encoder", "start"]


def test_wires_that_no_graph_reads_are_not_written(backend):
    wiring = Wiring(backend, [one for one in GRAPHS if one.name != "encoder"], DIMS)
    wiring.write(IMAGE)
    assert not wiring.has("image")
    assert wiring.has("preview")
