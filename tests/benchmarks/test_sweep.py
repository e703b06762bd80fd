from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import sweep
from benchmarks.cpu import entrants
from benchmarks.sweep import Entrant, Trial, best_settings, thread_counts

AXES = (({"layout": "plain"},), ({"threads": 2}, {"threads": 1}), ({"layout": "plain"}, {"layout": "last"}))


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Every setting that a process was started with; one thread and the `last` layout are the fastest."""
    started: list[Mapping[str, Any]] = []

    class Process:
        def __init__(self, settings: Mapping[str, Any]) -> None:
            started.append(settings)
            self.seconds = settings["threads"] + (0.5 if settings["layout"] == "plain" else 0.0)

        def paint(self) -> Process:
            return self

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(sweep, "start", lambda entrant, settings, work: Process(settings))
    return started


def test_each_axis_keeps_its_fastest_alternative(painted: list[Mapping[str, Any]]) -> None:
    entrant = Entrant(name="any", factory="m:C", axes=AXES)
    seen: list[Trial] = []
    chosen, trials = best_settings(entrant, None, repeats=2, on_trial=lambda _, trial: seen.append(trial))  # type: ignore[arg-type]
    assert chosen == {"layout": "last", "threads": 1}
    assert trials == seen
    assert [trial.seconds for trial in trials] == [2.5, 1.5, 1.0]


def test_settings_are_tried_once(painted: list[Mapping[str, Any]]) -> None:
    best_settings(Entrant(name="any", factory="m:C", axes=AXES), None, repeats=1, on_trial=lambda *_: None)  # type: ignore[arg-type]
    assert len(painted) == 3


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (2, 1)), (4, (4, 3, 2, 1)), (16, (16, 8, 4, 3, 2, 1))])
def test_thread_counts(cores: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


def test_both_contenders_try_every_thread_count() -> None:
    for entrant in entrants(2):
        assert {part["threads"] for axis in entrant.axes for part in axis if "threads" in part} == {1, 2}
