"""The emoji model's own modules (world, matcher, judge, train) are scripts beside their data, not packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EMOJI = Path(__file__).resolve().parents[2] / "models" / "emoji"
sys.path.insert(0, str(EMOJI))


@pytest.fixture(scope="session")
def emoji() -> Path:
    return EMOJI
