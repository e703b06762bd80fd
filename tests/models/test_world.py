"""The words, the split and the captions."""

from __future__ import annotations

import hashlib
import random

import world


def test_the_split_is_fixed_and_disjoint():
    held, seen = world.held_out_pairs(), world.seen_pairs()
    assert len(world.OBJECTS) == 96
    assert len(world.BACKGROUNDS) == 12
    assert not held & seen
    assert len(held) == 216
    assert len(held | seen) == 96 * 12
    digest = hashlib.sha256(repr(sorted(held)).encode()).hexdigest()
    assert digest == "1f14692ce86768a304e875473839cf7dd48bcdceae81992e1ce694946916e899", (
        "training kept these pairs away; they can't change without it"
    )


def test_every_object_and_background_is_seen_and_held_out():
    held = world.held_out_pairs()
    for word in world.OBJECT_WORDS:
        assert 2 <= sum(pair[0] == word for pair in held) <= 3
    for ground in world.BACKGROUND_WORDS:
        assert 6 <= sum(pair[1] == ground for pair in held) <= 40


def test_backgrounds_are_well_apart():
    colours = list(world.BACKGROUNDS.values())
    apart = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for i, x in enumerate(colours) for y in colours[:i]]
    assert min(apart) >= 48


def test_captions_name_what_they_show():
    rng = random.Random(0)
    scene = world.Scene("cat", "teal", "small", "left", "pizza")
    texts = [world.caption(scene, rng) for _ in range(200)]
    assert all("cat" in text or "kitten" in text for text in texts)
    assert all("pizza" in text for text in texts)
    assert sum("teal" in text for text in texts) > 180
    assert len(set(texts)) > 50


def test_articles():
    assert world.plain_prompt("owl", "red") == "an owl on a red background"
    assert world.plain_prompt("unicorn", "red") == "a unicorn on a red background"
    assert world.plain_prompt("grapes", "red") == "grapes on a red background"


def test_no_training_scene_shows_a_held_out_pair():
    import torch
    from train.compose import described, sample_scenes

    scenes = described(sample_scenes(4000, torch.Generator().manual_seed(0)), [False] * 4000)
    shown = {(word, scene.background) for scene in scenes for word in (scene.first, scene.second) if word is not None}
    assert not shown & world.held_out_pairs()
    assert len(shown) > 900
