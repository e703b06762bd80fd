"""TensorRT's loop on the fakes: parts, several profiles, captures, the shared scratch, and that nothing stays."""

from __future__ import annotations

import gc
import logging
import time

import numpy as np
import pytest

from engine.errors import ExecutionFailed
from runtime.denoise import denoise
from runtime.memory import MAX_WIRINGS, Wiring, Wirings
from tests import fake_cuda, fake_engine
from tests.fake_plans import Shelf
from tests.toy_bundle import GRAPHS, write_bundle

DIMS = {"samples": 1, "rows": 2, "height": 128, "width": 128, "tokens": 77, "draws": 1}
SMALL = {**DIMS, "height": 64, "width": 64}
CUTS = {"denoiser": ("half", "weighted")}


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return Shelf(monkeypatch, write_bundle(tmp_path / "toy"))


def noise_of(dims, seed=0):
    shape = dims["samples"], dims["draws"], 4, dims["height"] // 8, dims["width"] // 8
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def paint(wiring, seed=0, steps=4):
    """A picture by the runtime's own wiring."""
    wiring.write({"noise": noise_of(wiring.dims, seed)})
    for phase in ("conditioning", "once", *["loop"] * steps, "final"):
        wiring.launch(phase)
    return wiring.read("images")


def test_parts_compute_what_the_whole_does(shelf, tmp_path):
    shelf.put("128@2")
    whole = paint(Wiring(shelf.open(), GRAPHS, DIMS))
    cut = shelf.put("128@2", cuts=CUTS)
    for path in cut.glob("denoiser.plan*"):
        path.unlink()
    backend = shelf.open()
    np.testing.assert_array_equal(paint(Wiring(backend, GRAPHS, DIMS)), whole)
    assert [engine.name for engine in backend._engines["128@2"]._chains["denoiser"]] == [
        "denoiser 1/3", "denoiser 2/3", "denoiser 3/3",
    ]  # fmt: skip


def test_what_crosses_from_part_to_part_is_there_once_for_both_turns_and_goes_with_them(shelf):
    shelf.put("128@2", cuts=CUTS)
    for path in shelf.put("128@2", cuts=CUTS).glob("denoiser.plan*"):
        path.unlink()
    backend = shelf.open()
    before = len(shelf.cuda.memory)
    wiring = Wiring(backend, GRAPHS, DIMS)
    assert len(shelf.cuda.memory) - before == len(wiring.buffers) + 2
    paint(wiring)
    del wiring
    gc.collect()
    assert len(shelf.cuda.memory) == before


def test_one_set_serves_every_profile_in_it(shelf):
    shelf.put("64@2", "128@2-4")
    backend = shelf.open()
    for dims, seed in ((DIMS, 0), (SMALL, 1), ({**DIMS, "rows": 4, "samples": 2}, 2)):
        images = paint(Wiring(backend, GRAPHS, dims), seed)
        assert images.shape == (dims["samples"], dims["height"] // 8, dims["width"] // 8, 4)
        assert images.any()
    assert list(backend._engines) == ["64@2+128@2-4"]
    assert backend.row_counts(128, 128, 77) == [2, 3, 4]
    assert backend.row_counts(64, 64, 77) == [2]


class TestCapture:
    def test_a_captured_loop_paints_what_a_plain_one_does(self, shelf):
        shelf.put("128@2")
        plain = shelf.open(capture=False)
        wanted = [paint(Wiring(plain, GRAPHS, DIMS), seed, 7) for seed in (0, 1)]
        assert (plain.captures.captured, plain.captures.reason) == (0, "capture was not asked for")
        plain.close()
        backend = shelf.open()
        wiring = Wiring(backend, GRAPHS, DIMS)
        assert (backend.captures.captured, backend.captures.reason) == (0, "nothing ran twice yet")
        for seed, images in enumerate(wanted):
            np.testing.assert_array_equal(paint(wiring, seed, 7), images)
        assert (backend.captures.captured, backend.captures.reason) == (2, None)

    def test_the_first_of_each_turn_is_plain_and_the_rest_replays(self, shelf):
        shelf.put("128@2")
        wiring = Wiring(shelf.open(), GRAPHS, DIMS)
        shelf.cuda.calls.clear()
        paint(wiring, steps=10)
        assert shelf.cuda.calls.count("cudaStreamBeginCapture") == 2
        assert shelf.cuda.calls.count("cudaGraphLaunch") == 8
        assert shelf.cuda.calls.count("cudaGraphDestroy") == 2

    @pytest.mark.parametrize(
        "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"]
    )
    def test_where_a_step_of_it_fails_launches_stay_plain_and_the_reason_is_logged_once(self, shelf, caplog, call):
        shelf.put("128@2")
        wanted = paint(Wiring(shelf.open(capture=False), GRAPHS, DIMS), steps=8)
        backend = shelf.open()
        wiring = Wiring(backend, GRAPHS, DIMS)
        shelf.cuda.fails[call] = 900
        with caplog.at_level(logging.WARNING, "zturbo"):
            np.testing.assert_array_equal(paint(wiring, steps=8), wanted)
        assert [record.name for record in caplog.records] == ["zturbo.capture"]
        assert f"CUDA, {call}: error 900" in caplog.text
        assert (backend.captures.captured, backend.captures.reason) == (0, f"CUDA, {call}: error 900: failed")
        shelf.cuda.fails.clear()
        np.testing.assert_array_equal(paint(wiring, steps=8), wanted)
        assert shelf.cuda.recording is None
        backend.close()
        assert shelf.cuda.graphs == {}

    def test_a_launch_that_fails_while_captured_stays_plain(self, shelf):
        shelf.put("128@2")
        backend = shelf.open()
        wiring = Wiring(backend, GRAPHS, DIMS)
        launches = [wiring._launches["loop"][turn]._launches[0] for turn in (0, 1)]
        wanted = paint(wiring, steps=2)
        for launch in launches:
            launch.contexts[0].refuses = True
        with pytest.raises(ExecutionFailed, match="engine 'denoiser': got execute_async_v3 returned false"):
            paint(wiring)
        assert "execute_async_v3 returned false" in backend.captures.reason
        assert shelf.cuda.recording is None
        for launch in launches:
            launch.contexts[0].refuses = False
        np.testing.assert_array_equal(paint(wiring), wanted)

    def test_an_interrupt_within_it_leaves_no_capture_open(self, shelf, monkeypatch):
        shelf.put("128@2")
        backend = shelf.open()

        def interrupted():
            if shelf.cuda.recording is not None:
                raise KeyboardInterrupt

        launch = backend.capture([interrupted])
        launch()
        with pytest.raises(KeyboardInterrupt):
            launch()
        assert shelf.cuda.recording is None

    def test_what_is_dropped_meanwhile_is_freed_afterwards(self, shelf):
        shelf.put("128@2")
        backend, other = shelf.open(), shelf.open()
        tensors = [one._gpu.tensor((4,), "uint8") for one in (backend, other)]
        ring = [tensors]
        ring.append(ring)
        del tensors
        before = len(shelf.cuda.memory)

        def dropping():
            if shelf.cuda.recording is not None:
                ring.clear()
                gc.collect()
                assert len(shelf.cuda.memory) == before

        launch = backend.capture([dropping])
        launch()
        launch()
        assert backend.captures.captured == 1
        assert len(shelf.cuda.memory) == before - 2

    def test_captures_go_with_their_wirings(self, shelf):
        shelf.put("dynamic:64-128@1-8")
        backend = shelf.open()
        wirings = Wirings(lambda dims: Wiring(backend, GRAPHS, dims))
        for rows in range(2, 4 + MAX_WIRINGS):
            paint(wirings.get({**DIMS, "rows": min(rows, 8), "draws": rows}), steps=4)
            gc.collect()
            assert backend.captures.captured <= 2 * MAX_WIRINGS
        wirings.clear()
        gc.collect()
        assert shelf.cuda.graphs == {}


class TestArena:
    def test_it_is_as_large_as_any_set_is_known_to_need(self, shelf):
        shelf.put("128@2", scratch_bytes=5000)
        shelf.put("64@2", scratch_bytes=9000)
        backend = shelf.open()
        assert (backend._arena.size_bytes, backend._arena.generation) == (9000, 0)
        paint(Wiring(backend, GRAPHS, SMALL))
        assert backend._arena.generation == 0

    def test_where_memory_does_not_suffice_for_that_it_is_as_large_as_is_needed(self, shelf, monkeypatch):
        shelf.put("128@2", scratch_bytes=5000)
        shelf.put("64@2", scratch_bytes=9000)
        real = shelf.cuda.cudaMalloc
        monkeypatch.setattr(
            fake_cuda.FakeCuda, "cudaMalloc", lambda self, size: (2, None) if size > 8000 else real(size)
        )
        backend = shelf.open()
        assert backend._arena.size_bytes == 5000
        with pytest.raises(ExecutionFailed, match="out of memory"):
            Wiring(backend, GRAPHS, SMALL)
        assert paint(Wiring(backend, GRAPHS, DIMS)).any()

    def test_where_it_grows_every_execution_context_moves_and_captures_are_made_anew(self, shelf):
        shelf.put("128@2", scratch_bytes=5000)
        shelf.put("64@2", scratch_bytes=9000, told=False)
        backend = shelf.open()
        wiring = Wiring(backend, GRAPHS, DIMS)
        wanted = paint(wiring, steps=8)
        assert (backend._arena.size_bytes, backend.captures.captured) == (5000, 2)
        before = len(shelf.cuda.memory)
        paint(Wiring(backend, GRAPHS, SMALL))
        gc.collect()
        assert (backend._arena.size_bytes, backend._arena.generation) == (9000, 1)
        assert len(shelf.cuda.memory) == before
        shelf.cuda.calls.clear()
        np.testing.assert_array_equal(paint(wiring, steps=8), wanted)
        assert shelf.cuda.calls.count("cudaStreamBeginCapture") == 2
        assert shelf.cuda.calls.count("cudaGraphExecDestroy") == 2


@pytest.fixture
def no_collector():
    """What close() leaves to the garbage collector is left behind."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_twenty_loads_and_closes_leave_nothing(shelf):
    shelf.put("128@2", cuts=CUTS)
    shelf.put("64@2")
    for _ in range(20):
        backend = shelf.open()
        wirings = [Wiring(backend, GRAPHS, dims) for dims in (DIMS, SMALL)]
        for wiring in wirings:
            paint(wiring)
        backend.elapsed_ms(backend.stamp(), backend.stamp())
        rows = [wirings[0].buffers["latents"].save_row(0)]
        del wirings, wiring
        backend.close()
        assert shelf.cuda.alive == 0
        assert shelf.cuda.graphs == {}
        assert not fake_engine.ALIVE
    del rows


@pytest.mark.usefixtures("no_collector")
def test_close_frees_engines_that_a_kept_wiring_was_bound_to(shelf):
    """As a Step or a traceback may keep one; to launch it then is an error."""
    shelf.put("128@2", cuts=CUTS)
    backend = shelf.open()
    wiring = Wiring(backend, GRAPHS, DIMS)
    paint(wiring)
    backend.close()
    assert not fake_engine.ALIVE
    assert shelf.cuda.alive == 0
    with pytest.raises(ExecutionFailed, match="after close"):
        wiring.launch("loop")


def test_stamps_tell_what_the_gpu_took(shelf):
    shelf.put("128@2")
    backend = shelf.open()
    wiring = Wiring(backend, GRAPHS, DIMS)
    wiring.write({"noise": noise_of(DIMS)})
    wiring.launch("once")
    begin = backend.stamp()
    for _ in range(4):
        wiring.launch("loop")
    assert backend.elapsed_ms(begin, backend.stamp()) == 4 * shelf.cuda.step_ms
    handles = len(shelf.cuda.handles)
    for _ in range(5):
        backend.elapsed_ms(backend.stamp(), backend.stamp())
    assert len(shelf.cuda.handles) <= handles + 1


def test_the_host_needs_little_time_for_a_step(shelf):
    """Processor time, median of 50 loops whose replays do nothing: 60 µs allowed, 17 measured, most the fake's own."""
    shelf.put("128@2")
    backend = shelf.open()
    wiring, seconds = Wiring(backend, GRAPHS, DIMS), []
    paint(wiring)
    shelf.cuda.graphs = {handle: [] for handle in shelf.cuda.graphs}
    for _ in range(50):
        begun = time.process_time()
        for _ in denoise(backend, wiring, 100, 0, 100):
            pass
        seconds.append((time.process_time() - begun) / 100)
    assert shelf.cuda.calls.count("cudaGraphLaunch") > 5000
    assert np.median(seconds) < 60e-6
