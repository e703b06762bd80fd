"""What a build tells while it runs, and how it is cancelled; processes are real, the builds in them are made up."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from engine.build import BuildEvent, build_engines
from engine.plan import Options, engines_folder, info_path
from engine.progress import Progress
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Cancelled(Exception):
    pass


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "toy")


@pytest.fixture
def identities(folder, rtx, stub_builds):
    return {info.identity.name: info.identity for info in build_engines(folder, "tensorrt_rtx:8.6", ["128@2"])}


def test_events_tell_elapsed_and_left(identities):
    events: list[BuildEvent] = []
    clock = Clock()
    progress = Progress(events.append, clock)
    for name, predicted in (("start", None), ("denoiser", 60.0), ("decoder", 20.0)):
        progress.add(name, identities[name], "no plan", predicted)
    progress.kept("start", "kept")
    progress.side_by_side = 2
    progress.started("denoiser")
    progress.started("decoder")
    clock.now += 30
    progress.running()
    progress.built("decoder", 30.0)
    progress.running()
    progress.built("denoiser", 90.0)
    progress.running()
    assert [event.kind for event in events] == [
        "kept", "started", "started", "running", "built", "running", "built",
    ]  # fmt: skip
    running, built, later = events[3:6]
    assert (running.plan, running.seconds, running.elapsed, running.running) == ("denoiser", 30, 30, 2)
    assert running.left == 30
    assert (built.left, later.left) == (60, 60)  # all is half as fast again as predicted
    assert str(running) == "running denoiser 128@2 for 30.0 s (2 side by side)"
    assert str(built) == "built decoder 128@2 in 30.0 s (no plan)"
    assert [event.done for event in events] == [1, 1, 1, 1, 2, 2, 3]
    assert events[-1].left == 0


def test_the_gate_tells_of_itself_while_it_runs(identities):
    events: list[BuildEvent] = []
    clock = Clock()
    progress = Progress(events.append, clock)
    progress.add("start", identities["start"], "no plan", None)
    tick = progress.checking(("64@1", "128@2"))
    clock.now += 7
    tick()
    assert [(event.kind, event.total, event.elapsed) for event in events] == [("checking", 1, 0), ("running", 1, 7)]
    assert [str(event) for event in events] == [
        "checking 64@1 + 128@2 (the parity gate)", "checking 64@1 + 128@2 for 7.0 s (the parity gate)",
    ]  # fmt: skip


def test_what_is_unknown_is_none(identities):
    events: list[BuildEvent] = []
    progress = Progress(events.append)
    progress.add("start", identities["start"], "no plan", None)
    progress.started("start")
    assert events[0].left is None


def test_a_stale_plan_tells_how_long_the_next_takes(folder, gpu, stub_builds, gate):
    gate(passed)
    stub_builds.seconds = 40.0
    build_engines(folder, "tensorrt", ["128@2"])
    events: list[BuildEvent] = []
    build_engines(folder, "tensorrt", ["128@2"], options=Options(level=1), jobs=1, on_progress=events.append)
    first = next(event for event in events if event.kind == "started")
    assert first.left == pytest.approx(120, abs=1)
    info_path(next(engines_folder(folder).glob("*/128@2/start.plan"))).unlink()
    events.clear()
    build_engines(folder, "tensorrt", ["128@2"], options=Options(level=1), jobs=1, on_progress=events.append)
    assert next(event for event in events if event.kind == "started").left is None


def test_8_6_is_predicted_by_its_nodes(folder, old_gpu, stub_builds, gate):
    gate(passed)
    events: list[BuildEvent] = []
    build_engines(folder, "tensorrt", ["128@2"], jobs=1, on_progress=events.append)
    first = next(event for event in events if event.kind == "started")
    assert first.left == pytest.approx(0.5 * (2 + 8 + 3), abs=0.1)


SLEEPER = """
import os, sys, time
with open({pids!r}, "a") as stream:
    stream.write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""


@pytest.fixture
def sleepers(tmp_path, monkeypatch):
    """Workers write down their process id and sleep for a minute; returns the file."""
    pids = tmp_path / "pids"
    pids.touch()
    (tmp_path / "sleeper.py").write_text(SLEEPER.format(pids=str(pids)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("engine.processes.WORKER", "sleeper")
    return pids


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt])
def test_what_a_callback_raises_ends_the_build_at_once(folder, rtx, sleepers, error):
    """0.1 s on a quiet machine. The limits leave room for a busy one; workers that nobody ends sleep for a minute."""
    raised = []

    def on_progress(event):
        if event.kind == "running" and len(sleepers.read_text().split()) == 2:
            raised.append(time.monotonic())
            raise error

    begun = time.monotonic()
    with pytest.raises(error):
        build_engines(folder, "tensorrt_rtx:8.6", ["128@2"], jobs=2, on_progress=on_progress)
    ended = time.monotonic()
    assert ended - raised[0] < 10
    assert ended - begun < 40
    assert not any(alive(int(pid)) for pid in sleepers.read_text().split())


def test_running_is_told_about_once_a_second(folder, rtx, sleepers):
    times: list[float] = []

    def on_progress(event):
        if event.kind == "running":
            times.append(event.elapsed)
            if len(times) == 3:
                raise Cancelled

    with pytest.raises(Cancelled):
        build_engines(folder, "tensorrt_rtx:8.6", ["128@2"], jobs=1, on_progress=on_progress)
    gaps = [after - before for before, after in pairwise(times)]
    assert all(0.9 < gap < 10 for gap in gaps)  # a busy machine tells later, never sooner
