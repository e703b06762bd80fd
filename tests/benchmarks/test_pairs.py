from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks import pairs
from benchmarks.pairs import Summary, interleaved, psnr
from benchmarks.report import as_json


class Process:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def paint(self) -> str:
        self.log.append(self.name)
        return f"{self.name}{self.log.count(self.name)}"


def test_turns_are_interleaved_and_who_begins_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SETTLE_S", 0)
    log: list[str] = []
    a: Any = Process("a", log)
    b: Any = Process("b", log)
    first, second = interleaved(a, b, warmup=1, pairs=2, on_pair=lambda: None)
    assert "".join(log) == "abbaab"
    assert (first, second) == (["a2", "a3"], ["b2", "b3"])


def test_summary() -> None:
    assert Summary.of([3.0, 1.0, 2.0]) == Summary(2.0, pytest.approx(1.1), pytest.approx(2.9))


def test_psnr() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert math.isinf(psnr(black, black))
    assert psnr(black, grey) == pytest.approx(20 * math.log10(255))


def test_json_is_short_and_whole() -> None:
    assert as_json({"a": 1 / 3, "b": [2, "×"], "c": None}, indent=None) == '{"a": 0.33333, "b": [2, "×"], "c": null}'
