"""Free memory before, during and after: the arithmetic on a GPU whose free bytes are told."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest

from benchmarks import memory
from benchmarks.memory import MIB, cycles, lowest


class ToldMemory:
    """A GPU with some free bytes; whoever asks is told."""

    def __init__(self, free_mib: float = 1000.0) -> None:
        self.free = free_mib * MIB
        self.asked = threading.Event()

    def __call__(self) -> int:
        self.asked.set()
        return int(self.free)

    def seen(self) -> None:
        """Wait until the watcher has read the present value: it began to read after the flag was lowered."""
        for _ in range(2):
            self.asked.clear()
            assert self.asked.wait(10)


def test_the_most_that_was_taken_in_between():
    free = ToldMemory()

    def work() -> str:
        for taken in (300.0, 700.0, 100.0):
            free.free = (1000.0 - taken) * MIB
            free.seen()
        return "done"

    taken, readings, result = lowest(free, work)
    assert (taken, result) == (700 * MIB, "done")
    assert readings >= 4


def test_the_watcher_ends_where_the_work_fails():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        lowest(ToldMemory(), lambda: 1 // 0)
    assert threading.active_count() == before


def test_what_the_first_cycle_keeps_is_not_held_against_the_others():
    free, calls = ToldMemory(), []

    def once() -> None:
        calls.append(None)
        free.free -= (500 if len(calls) == 1 else 0) * MIB

    found = cycles(free, once, 3)
    assert len(calls) == 4
    assert found["even"]
    assert (found["spread_mib"], found["lost_mib"], found["first_mib"]) == (0.0, 0.0, 500.0)
    assert found["free_mib"] == [[500.0, 500.0]] * 3


@pytest.mark.parametrize(("each", "even"), [(1.5, True), (2.0, False), (-2.0, False)])
def test_a_leak_shows_over_many_cycles(each, even):
    free = ToldMemory()

    def once() -> None:
        free.free -= each * MIB

    found = cycles(free, once, 20)
    assert found["even"] is even
    assert found["lost_mib"] == pytest.approx(20 * each)
    assert found["spread_mib"] == pytest.approx(20 * abs(each))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_cycles_load_what_was_asked_for(monkeypatch, precision, capsys):
    loaded = []

    def load(folder, backend, **options):
        loaded.append((backend, options))
        return contextlib.nullcontext(SimpleNamespace(generate=lambda request: None))

    monkeypatch.setattr(memory, "Pipeline", SimpleNamespace(load=load))
    monkeypatch.setattr(memory, "free_here", ToldMemory)
    monkeypatch.setattr(memory, "gpu_facts", lambda backend: {"gpu": "none"})
    assert memory.main(["cycles", "bundle", "--precision", precision, "--count", "1"]) == 0
    assert loaded == [("tensorrt", {"precision": precision})] * 2
    assert f'"precision": "{precision}"' in capsys.readouterr().out


def test_the_painting_process_paints(monkeypatch, tiny_bundle, capsys):
    words = [str(tiny_bundle), "--backend", "onnxruntime", "--precision", "fp32", "--size", "128", "--steps", "1"]
    assert memory.main(["paint", *words]) == 0
    assert '"seconds"' in capsys.readouterr().out


def test_peak_counts_the_context_apart(monkeypatch, capsys):
    free, taken = ToldMemory(), {"none": 400.0, "tensorrt": 900.0}

    def child(words):
        free.free = (1000.0 - taken[words[words.index("--backend") + 1]]) * MIB
        free.seen()
        free.free = 1000.0 * MIB
        return {"seconds": [1.0]}

    monkeypatch.setattr(memory, "free_here", lambda: free)
    monkeypatch.setattr(memory, "_child", child)
    monkeypatch.setattr(memory, "gpu_facts", lambda backend: {"gpu": "none"})
    assert memory.main(["peak", "bundle", "--size", "256"]) == 0
    line = capsys.readouterr().out
    assert '"peak_mib": 900.0' in line
    assert '"context_mib": 400.0' in line


def test_a_painting_process_that_fails_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "free_here", ToldMemory)
    assert memory.main(["peak", str(tmp_path / "none"), "--backend", "onnxruntime"]) == 2
    told = capsys.readouterr().err
    assert "ExecutionFailed" in told
