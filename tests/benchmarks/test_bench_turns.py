"""Turns: the order, who falls out, groups that fit, and what the times say."""

from __future__ import annotations

import pytest

from benchmarks.bench import turns
from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.threads import Trial, best_threads, fastest

STAND = "tests.bench_stand_ins:Stand"


def stand(name, **settings):
    return Spec(name=name, factory=STAND, settings=settings)


@pytest.fixture
def plan(tmp_path):
    return Plan(bundle=tmp_path, size=None, steps=(4, 2), turns=3, warmup=1, open_s=20, first_s=20, picture_s=20)


def test_all_take_turns_and_one_that_falls_out_is_told(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "SETTLE_S", 0)
    rounds, opened = [], []
    specs = [stand("slow", seconds=2.0), stand("fast", seconds=0.5), stand("dead", die="paint")]
    found, fallen = turns.take_turns(
        specs, plan, tmp_path, on_round=lambda: rounds.append(1), on_open=lambda pids: opened.append(len(pids))
    )
    assert list(found) == ["slow", "fast"]
    assert "ended with code 3" in fallen["dead"]
    assert (len(rounds), opened) == (3, [2])
    assert [one["seconds"] for one in found["slow"][4]] == [8.0] * 3
    assert turns.ratios(found, "fast", "slow", 4) == {"median": 4.0, "p5": 4.0, "p95": 4.0}
    assert turns.ratios(found, "fast", "dead", 4) is None


def test_who_begins_moves_on():
    assert [turns.rotated(["a", "b", "c"], by) for by in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]
    ]  # fmt: skip
    assert turns.rotated([], 3) == []


def test_groups_fit_into_memory():
    sizes = {"a": 40, "b": 50, "c": 30, "d": 200}
    assert turns.groups(list(sizes), sizes, 100) == [["a", "b"], ["c"], ["d"]]
    assert turns.groups(["a", "x"], sizes, 100) == [["a", "x"]]


def test_what_pictures_say():
    painted = [
        {"seconds": 1.0, "stages": {"loop": 0.8}, "device_ms": {"loop": 400.0}, "steps_ms": [1.0, 3.0]},
        {"seconds": 3.0, "stages": {"loop": 1.0}, "device_ms": {"loop": 1000.0}, "steps_ms": [2.0, 2.0]},
    ]
    found = turns.speed_of(painted)
    assert found["seconds"]["median"] == 2.0
    assert found["loop_over_device"]["median"] == 1.5
    assert found["steps_ms"]["median"] == 2.0
    assert "device_ms" not in turns.speed_of([{**painted[0], "device_ms": {}, "steps_ms": []}])


def trial(seconds, threads=2, policy="PASSIVE"):
    return Trial(threads, policy, seconds)


def test_the_fastest_threads_are_taken_fewer_only_where_they_clearly_are(plan, tmp_path, monkeypatch):
    times = {(2, "PASSIVE"): 1.0, (2, "default"): 0.8, (1, "default"): 0.75}
    monkeypatch.setattr(
        "benchmarks.bench.threads._tried",
        lambda spec, plan, folder, one: Trial(one.threads, one.policy, times[one.threads, one.policy]),
    )
    told = []
    best, trials = best_threads(stand("diffusers"), plan, tmp_path, 2, told.append)
    assert (best.threads, best.policy) == (2, "default"), "1.07 times as fast is within a moment's noise"
    assert trials == told
    times[1, "default"] = 0.5
    assert best_threads(stand("diffusers"), plan, tmp_path, 2, told.append)[0].threads == 1


def test_threads_that_take_too_long_are_not_taken(plan, tmp_path):
    slow = trial(None)
    assert fastest([slow, trial(2.0)]).seconds == 2.0
    assert (slow.text, trial(0.5).text) == ("2 threads, PASSIVE: too long", "2 threads, PASSIVE: 0.500 s")
    spec = trial(1.0, policy="default").taken_by(stand("diffusers", grey=3))
    assert spec.settings == {"grey": 3, "threads": 2}
    assert spec.environment == {"OMP_NUM_THREADS": None, "OMP_WAIT_POLICY": None}


def test_a_trial_is_a_process_of_its_own(plan, tmp_path):
    best, trials = best_threads(stand("diffusers", seconds=0.25), plan, tmp_path, 1, lambda _: None)
    assert [one.seconds for one in trials] == [0.5, 0.5]
    assert best.policy == "PASSIVE"
    _, trials = best_threads(stand("diffusers", die="open"), plan, tmp_path, 1, lambda _: None)
    assert [one.seconds for one in trials] == [None, None]
