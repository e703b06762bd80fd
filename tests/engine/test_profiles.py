"""Profiles: their text, their shapes, and what they refuse."""

from __future__ import annotations

import pytest

from engine.binding import Binding
from engine.bundle import Bundle, load_bundle
from engine.errors import ProfileInvalid
from engine.profiles import parse_profile, parse_profiles, profile_from_slug
from tests.toy_bundle import write_bundle

SAMPLE = Binding(name="sample", dtype="float16", shape=("rows", 4, "height/8", "width/8"), lifetime="transient")
NOISE = Binding(
    name="noise", dtype="float32", shape=("samples", "draws", 4, "height/8", "width/8"), lifetime="per_sample"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("toy")))


def test_a_static_profile_counts_rows(bundle):
    profile = parse_profile("256@2", bundle)
    assert profile.ranges(SAMPLE) == ((2, 4, 32, 32),) * 3
    assert profile.ranges(NOISE) == ((1, 1, 4, 32, 32), (1, 1, 4, 32, 32), (2, 128, 4, 32, 32))


def test_samples_run_from_half_of_min_to_max(bundle):
    profile = parse_profile("512x256@3-7", bundle)
    assert profile.symbols["samples"] == (2, 4, 7)
    assert profile.symbols["rows"] == (3, 7, 7)
    assert profile.ranges(SAMPLE) == ((3, 4, 32, 64), (7, 4, 32, 64), (7, 4, 32, 64))


def test_a_dynamic_profile_is_tuned_for_the_default_size(bundle):
    profile = parse_profile("dynamic:64-512@1-8", bundle)
    assert profile.ranges(SAMPLE) == ((1, 4, 8, 8), (8, 4, 16, 16), (8, 4, 64, 64))
    assert parse_profile("dynamic:256-512@2", bundle).symbols["width"] == (256, 256, 512)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("256@2", "256@2"), ("256x256@2-2", "256@2"), ("256x128@1-4", "256x128@1-4"), ("dynamic:64-512@1-8",) * 2],
)
def test_text_is_canonical_and_its_slug_reads_back(bundle, text, canonical):
    profile = parse_profile(text, bundle)
    assert profile.text == canonical
    assert not set(profile.slug) & set('<>:"/\\|?*')
    assert profile_from_slug(profile.slug, bundle) == profile


def test_covers(bundle):
    profile = parse_profile("dynamic:64-256@2-4", bundle)
    inside = {"rows": 4, "samples": 2, "height": 128, "width": 256, "tokens": 77, "draws": 20}
    assert profile.covers(inside)
    for name, value in {"rows": 1, "samples": 5, "height": 512, "width": 32, "draws": 129, "tokens": 64}.items():
        assert not profile.covers({**inside, name: value})


def test_profiles_are_taken_once(bundle):
    assert [p.text for p in parse_profiles(["256@2", "256x256@2", "128@1"], bundle)] == ["256@2", "128@1"]
    with pytest.raises(ProfileInvalid, match="at least one"):
        parse_profiles([], bundle)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "WIDTHxHEIGHT"), ("256", "WIDTHxHEIGHT"), ("256@", "WIDTHxHEIGHT"), ("256@2\n", "WIDTHxHEIGHT"),
        ("256@-1", "WIDTHxHEIGHT"), ("²56@2", "WIDTHxHEIGHT"), ("99999999999@2", "WIDTHxHEIGHT"),
        ("256@0", "MIN ≤ MAX"), ("256@4-2", "MIN ≤ MAX"), ("256@2-65", "MIN ≤ MAX"),
        ("250@2", "multiples of 8 from 64 to 512"), ("1024@2", "multiples of 8"), ("256x32@2", "multiples of 8"),
        ("dynamic:512-128@2", "MIN_PX ≤ MAX_PX"), ("dynamic:128@2", "WIDTHxHEIGHT"), ("dynamic:64-520@2", "64 to 512"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_what_is_allowed(bundle, text, what):
    with pytest.raises(ProfileInvalid, match=what):
        parse_profile(text, bundle)
