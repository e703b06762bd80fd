"""The contender zturbo: it computes all of every picture, as the other contender does."""

from __future__ import annotations

import numpy as np

from benchmarks import with_zturbo
from benchmarks.work import work_from_bundle
from tests.fake_backend import FakeBackend
from tests.fake_bundle import write_bundle


def test_each_picture_encodes_its_prompt(tmp_path, monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(with_zturbo, "open_backend", lambda *_: (backend, ()))
    folder = write_bundle(tmp_path / "fake", ("fp32", "fp16"))
    monkeypatch.setattr("pathlib.Path.is_dir", lambda path: True)
    contender = with_zturbo.ZturboContender(work_from_bundle(folder, size_px=128, steps=2))
    contender.configure({"threads": 1})
    pictures = [contender.paint().picture for _ in range(3)]
    assert backend.events.count("conditioning") == 3
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
