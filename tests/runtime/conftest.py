"""What the runtime's tests share: pipelines on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bundle import load_bundle
from runtime.pipeline import Pipeline
from tests.fake_backend import FakeBackend


@pytest.fixture
def make_pipeline(bundle_folder: Path) -> Callable[..., Pipeline]:
    """A pipeline on a new FakeBackend of these options; nothing of it needs closing."""
    bundle = load_bundle(bundle_folder)
    return lambda **options: Pipeline(bundle_folder, bundle, FakeBackend(**options))


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    return make_pipeline()
