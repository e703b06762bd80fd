"""Quiet threads for tests that run torch, and tables apart from the user's cache.

The tiny model and its bundle are those of tests/conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from export import table_cache
from tests.conftest import CACHE
from tests.export.small_models import small

torch.set_num_threads(1)  # tiny tensors; threads that wait for each other cost more than they bring


@pytest.fixture(autouse=True, scope="session")
def own_tables() -> Iterator[None]:
    """An export that names no cache finds and leaves its tables with the tests', not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_cache, "default_folder", lambda: CACHE / "tables")
        yield


__all__ = ["own_tables", "small"]
