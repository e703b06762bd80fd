"""Wall time over replays: the arithmetic on a clock that is told the time; the measurement whole on a fake backend."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import loop
from benchmarks.stamps import HostClock, StampedBackend, Turn, repeated_ms
from engine.bundle import load_bundle
from tests import toy_bundle
from tests.fake_backend import FakeBackend
from tests.fake_bench import Bench
from tests.fake_bundle import write_bundle


class ToldClock:
    """Time passes when it is told to; milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def stamp(self) -> float:
        return self.now

    def elapsed_ms(self, begin: float, end: float) -> float:
        return end - begin


def test_a_turn_tells_replays_from_what_lies_between():
    clock = ToldClock()
    backend = StampedBackend(FakeBackend(), clock)

    def work() -> None:
        clock.now += 4.0

    launch = backend.capture([work])
    for pause in (1.0, 2.0, 3.0):
        clock.now += pause
        launch()
    turn = backend.turn(20.0)
    assert turn == Turn(wall=20.0, steps=(4.0, 4.0, 4.0), between=(2.0, 3.0), span=17.0)
    assert turn.ratio == pytest.approx(20 / 12)
    launch()
    assert len(backend.turn(5.0).steps) == 1, "a turn holds its own steps alone"


def test_what_is_not_captured_is_the_inner_backends():
    inner = FakeBackend(max_rows=3)
    backend = StampedBackend(inner, HostClock())
    assert (backend.name, list(backend.row_counts(64, 64, 77))) == ("fake", [1, 2, 3])


@pytest.mark.parametrize("capture", [True, False])
def test_tensorrt_is_its_own_clock(monkeypatch, tmp_path, capture):
    bench = Bench(monkeypatch, tmp_path, "8.6")
    opened = bench.open(capture=capture)
    backend = StampedBackend(opened, loop.clock_of(opened))
    graph, dims = toy_bundle.GRAPHS[1], toy_bundle.CASES["default"]
    buffers = {binding.name: backend.allocate(binding, dims) for binding in graph.bindings}
    launch = backend.capture([backend.bind(graph, buffers, dims)])
    for _ in range(4):
        launch()
    turn = backend.turn(10 * bench.cuda.step_ms)
    assert turn.steps == (bench.cuda.step_ms,) * 4
    assert turn.ratio == pytest.approx(2.5)
    assert opened.captures.captured == (1 if capture else 0)
    opened.close()
    assert bench.cuda.alive == 0


def test_the_summary_of_two_pictures():
    found = loop.summary([Turn(12.0, (4.0, 4.0), (1.0,), 9.0), Turn(10.0, (4.0, 4.0), (0.5,), 8.5)])
    assert found["ratio"] == pytest.approx(22 / 16)
    assert found["steps"] == 4
    assert found["ratio_of_pictures"]["median"] == pytest.approx((1.5 + 1.25) / 2)
    assert found["replay_ms"]["median"] == 4.0
    assert found["wall_ms_per_step"]["median"] == pytest.approx(5.5)
    assert found["host"] == pytest.approx({"share": 6 / 22, "between": 1.5 / 22, "edges": 4.5 / 22})


def test_warm_up_launches_are_not_timed():
    clock, launches, waits = ToldClock(), [], []

    def launch() -> None:
        launches.append(None)
        clock.now += 100.0 if len(launches) <= 2 else 3.0

    assert repeated_ms(launch, clock, lambda: waits.append(len(launches)), warmup=2, repeats=4) == [3.0] * 4
    assert waits == [2, 6], "the warm-up is over before the first stamp, and everything before the first reading"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    opened: list[bool] = []

    def open_backend(_folder, _bundle, options):
        opened.append(options.capture)
        return FakeBackend()

    monkeypatch.setitem(sys.modules, "runtime.backends.onnxruntime", SimpleNamespace(open_backend=open_backend))
    monkeypatch.setattr(loop, "gpu_facts", lambda backend: {"gpu": "none"})
    yield write_bundle(tmp_path / "fake", ("fp32", "fp16"))
    assert opened in ([], [True, False]), "captured and plain, one pipeline each"


def test_the_whole_measurement(folder, tmp_path, capsys):
    words = ["--backend", "onnxruntime", "--size", "128", "--steps", "2", "5", "--pictures", "3", "1", "--rounds", "2"]
    assert loop.main([str(folder), *words, "--out", str(tmp_path / "out" / "loop.json")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "out" / "loop.json").read_text(encoding="utf-8"))
    assert {"captured", "plain", "graphs_ms", "machine", "backend", "width", "rows"} <= found.keys()
    assert [found["captured"][n]["pictures"] for n in ("2", "5")] == [6, 2]
    assert [found["plain"][n]["steps"] for n in ("2", "5")] == [12, 10]
    assert all(of["ratio"] >= 1 for kind in ("captured", "plain") for of in found[kind].values())
    assert {"median", "p5", "p95"} == found["step_alone_ms"].keys()
    assert set(found["graphs_ms"]) == {
        "conditioning", "start", "denoiser", "solver", "decoder"
    }  # fmt: skip


def test_the_steps_graphs_alone_are_launched_together(folder):
    """In the order of the loop, each time both; the solver makes what the denoiser reads."""
    backend = FakeBackend()
    bundle = load_bundle(folder)
    graphs, step = loop.alone(StampedBackend(backend, HostClock()), bundle, 128)
    alone = [event for event in backend.events if not event.startswith(("mark", "wait"))]
    count = loop.WARMUP + loop.REPEATS
    assert alone[: 2 * count] == ["denoiser", "solver"] * count
    assert alone.count("start") == count
    assert min(step) > 0
    assert len(step) == len(graphs["denoiser"]) == loop.REPEATS


@pytest.mark.parametrize("words", [["--steps", "20"], ["--pictures", "1", "2", "3"]])
def test_step_counts_without_pictures_are_a_message(folder, capsys, words):
    with pytest.raises(SystemExit) as ended:
        loop.main([str(folder), *words])
    assert ended.value.code == 2
    assert "as many of the one as of the other" in capsys.readouterr().err


def test_a_missing_bundle_is_told(tmp_path, capsys):
    assert loop.main([str(tmp_path / "none")]) == 2
    assert "BundleMissing" in capsys.readouterr().err
