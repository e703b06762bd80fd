"""What the engine's tests of bundles share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bundle import load_bundle
from engine.errors import BundleError, ZturboError


@pytest.fixture
def refused() -> Callable[[Path, type[BundleError]], BundleError]:
    """Load a bundle that must be refused with exactly this error, and see that nothing was written."""

    def check(folder: Path, kind: type[BundleError]) -> BundleError:
        before = contents(folder)
        with pytest.raises(ZturboError) as caught:
            load_bundle(folder)
        assert type(caught.value) is kind
        assert contents(folder) == before
        assert caught.value.actual
        assert "`zturbo export" in caught.value.remedy
        return caught.value

    return check


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
