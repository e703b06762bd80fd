"""The judge sees what is there, and chooses its pairs the same way every time."""

from __future__ import annotations

import judge
import pytest
import world
from matcher import Matcher
from PIL import Image


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher()


def test_clean_composites_are_told_right(matcher: Matcher):
    pairs = judge.ordered(world.held_out_pairs() | world.seen_pairs(), 24)
    pictures = judge.composites(judge.shipped_sprites(), pairs, 256)
    found = [(verdict.object, verdict.background) for verdict in map(matcher.look, pictures)]
    assert found == pairs


def test_small_pictures_too(matcher: Matcher):
    pairs = judge.ordered(world.held_out_pairs(), 8)
    pictures = judge.composites(judge.shipped_sprites(), pairs, 128)
    assert [matcher.look(picture).object for picture in pictures] == [word for word, _ in pairs]


def test_two_objects(matcher: Matcher):
    sprites = judge.shipped_sprites()
    canvas = Image.new("RGB", (256, 256), world.BACKGROUNDS["white"])
    for word, left in (("cat", 12), ("pizza", 140)):
        tile = sprites[word].resize((104, 104))
        canvas.paste(tile, (left, 76), tile)
    assert matcher.look_at_two(canvas, stacked=False) == ("cat", "pizza")


def test_an_empty_picture_scores_low(matcher: Matcher):
    verdict = matcher.look(Image.new("RGB", (256, 256), world.BACKGROUNDS["teal"]))
    assert verdict.background == "teal"
    assert verdict.score < 0.2


def test_the_judged_pairs_are_fixed():
    assert judge.ordered(world.held_out_pairs(), 200) == judge.ordered(world.held_out_pairs(), 216)[:200]
    assert len(set(judge.ordered(world.seen_pairs(), 200))) == 200


def test_templates_are_small(emoji):
    assert (emoji / "templates.webp").stat().st_size <= 500_000
