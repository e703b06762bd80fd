"""The sheets in docs/golden are what the features paint now: two of them in every run, all in the slow tests."""

from __future__ import annotations

import pytest
from PIL import Image

from benchmarks import golden
from runtime.pipeline import Pipeline
from tests.conftest import SCHEDULERS, exported

MOST = 0.5
"""Mean grey levels. Another processor sums in another order, which moves some values by one level; another seed, prompt
or scheduler is further off than 5 on every sheet."""


QUICK = ("clip-skip", "inpainting")


def check(folder, root, names):
    with Pipeline.load(folder, "onnxruntime", threads=2) as pipeline:
        for name in names:
            kept = Image.open(root / "docs" / "golden" / f"{name}.png")
            assert golden.distance(kept, golden.sheet(golden.FEATURES[name](pipeline))) <= MOST, name


@pytest.mark.slow
def test_two_sheets_are_as_they_were(emoji_bundle, root):
    check(emoji_bundle, root, QUICK)


@pytest.mark.slow
def test_the_other_sheets_are_as_they_were(root):
    """On a bundle with the schedulers that they name."""
    names = (*SCHEDULERS, *golden.NAMES, "TCD")
    check(exported(root / "models" / "emoji", "emoji-golden", names), root, set(golden.FEATURES) - set(QUICK))


def test_the_distance_tells_pictures_apart(root):
    names = [f"{name}.png" for name in golden.FEATURES]
    assert sorted(path.name for path in (root / "docs" / "golden").glob("*.png")) == sorted(names)
    sheets = [Image.open(root / "docs" / "golden" / name) for name in names]
    apart = [golden.distance(a, b.resize(a.size)) for k, a in enumerate(sheets) for b in sheets[:k]]
    assert min(apart) > 10 * MOST
    assert golden.distance(sheets[0], sheets[0]) == 0
    assert golden.distance(sheets[0], sheets[0].crop((0, 0, 5, 5))) == float("inf")
