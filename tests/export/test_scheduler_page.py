"""docs/schedulers.md is what its generator writes, and no class of diffusers is missing from it."""

from __future__ import annotations

import importlib.util

import pytest

from export.scheduler_page import PAGE, page, scheduler_classes, uncovered


def test_every_class_is_offered_or_refused() -> None:
    assert len(scheduler_classes()) > 40
    assert list(uncovered()) == []


def test_the_page_names_every_class() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in scheduler_classes() if name not in text] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchsde") is None, reason="the page is written with torchsde installed")
def test_the_page_is_what_the_generator_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
