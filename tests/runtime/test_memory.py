"""The wiring of one shape: a buffer per wire, carried pairs that change places, and a bounded number of shapes."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.memory import MAX_WIRINGS, Wiring, Wirings
from tests.fake_backend import FakeBackend
from tests.fake_bundle import SHAPES, SIGNATURES, graph

DIMS = {"samples": 2, "rows": 3, "height": 128, "width": 136, "tokens": 77, "draws": 4}
GRAPHS = [graph(name, "fp32") for name in SIGNATURES]
LATER = {"image", "image_noise", "preview"}
"""What only graphs read or make that are bound when they are first needed."""


@pytest.fixture
def backend():
    return FakeBackend()


def test_every_wire_has_one_buffer_of_its_shape(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    assert set(wiring.buffers) == set(SHAPES) - LATER
    assert len(backend.allocated) == len(SHAPES) - len(LATER)
    assert wiring.buffers["noise"].shape == (2, 4, 4, 16, 17)
    assert wiring.buffers["history"].array.dtype == np.float32
    assert wiring.buffers["encoder_hidden_states"].shape == (3, 77, 32)


def test_carried_pairs_change_places_each_step(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    for name in ("latents", "history", "row", "sample", "noise", "images"):
        wiring.buffers[name].array[...] = 1
    for name in ("latents", "history", "row"):
        wiring.buffers[f"next_{name}"].array[...] = 2
    for position in range(4):
        wiring.position = position
        for name in ("latents", "history", "row"):
            assert wiring.read(name).max() == 1 + position % 2
            assert wiring.read(f"next_{name}").max() == 2 - position % 2
        for name in ("sample", "noise", "images"):
            assert wiring.read(name).max() == 1


def test_a_step_reads_what_the_one_before_wrote(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.launch("once")
    for turn in range(5):
        assert (wiring.position, wiring.read("row").tolist()) == (turn, [1 + turn] * 2)
        wiring.launch("loop")
    wiring.launch("once")
    assert (wiring.position, wiring.read("row").tolist()) == (0, [1, 1])


def test_what_is_read_is_a_copy(backend):
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.read("latents")[...] = 9
    assert not wiring.read("latents").any()


def test_few_shapes_are_kept_and_the_oldest_goes_first():
    made = []
    wirings = Wirings(lambda dims: made.append(dims["rows"]) or object())
    kept = {rows: wirings.get({"rows": rows}) for rows in range(1, MAX_WIRINGS + 1)}
    assert wirings.get({"rows": 1}) is kept[1]
    wirings.get({"rows": 99})
    assert wirings.get({"rows": 1}) is kept[1]
    assert wirings.get({"rows": 2}) is not kept[2]
    assert made == [*range(1, MAX_WIRINGS + 1), 99, 2]


def test_the_order_of_dims_means_nothing():
    wirings = Wirings(lambda dims: object())
    assert wirings.get({"rows": 1, "samples": 2}) is wirings.get({"samples": 2, "rows": 1})


def test_a_shape_that_fails_is_not_kept():
    def fail(dims):
        raise RuntimeError("no memory")

    wirings = Wirings(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            wirings.get({"rows": 1})


def test_cleared_wirings_are_made_anew():
    wirings = Wirings(lambda dims: object())
    first = wirings.get({"rows": 1})
    wirings.clear()
    assert wirings.get({"rows": 1}) is not first


def test_conditioning_is_launched_apart_from_the_rest_of_once(backend):
    wiring = Wiring(backend, GRAPHS, DIMS, GRAPHS[:1], ["encoder_hidden_states"])
    for phase in ("conditioning", "once", "loop", "final"):
        wiring.launch(phase)
        backend.events.append("/")
    assert backend.events == ["conditioning", "/", "start", "/", "denoiser", "solver", "/", "decoder", "/"]


def test_only_the_loop_is_captured_once_for_each_turn(backend):
    Wiring(backend, GRAPHS, DIMS)
    assert backend.captures.captured == 2


def test_a_read_only_array_is_written_once(backend):
    """Nobody changes it, so its buffer holds it until another is written; any other array is written each time."""
    wiring = Wiring(backend, GRAPHS, DIMS)
    buffer, array = wiring.buffers["guidance_scale"], np.ones(2, np.float32)
    for writeable, expected in ((True, 1), (False, 1), (False, 7), (True, 1)):
        array.flags.writeable = writeable
        wiring.write({"guidance_scale": array})
        assert (buffer.array == expected).all()
        buffer.array[...] = 7
    wiring.write({"guidance_scale": np.zeros(2, np.float32)})
    assert not buffer.array.any()
