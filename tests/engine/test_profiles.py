"""Profiles: their text, their shapes, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from engine.binding import Binding
from engine.bundle import Bundle, load_bundle
from engine.errors import ProfileInvalid
from engine.profiles import MAX_NAME, dims_text, named_sets, parse_profile, parse_profiles, read_set_name, set_name
from engine.schema import Defaults, Limits
from engine.tokens import Templated
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
    [
        ("256@2", "256@2"), ("256x256@2-2", "256@2"), ("256x128@1-4", "256x128@1-4"), ("dynamic:64-512@1-8",) * 2,
        ("256@2t77", "256@2"), ("256@2t77-77", "256@2"), ("256@1-2t154", "256@1-2t154"), ("256@2t154-154", "256@2t154"),
        ("256x128@2t77-231", "256x128@2t77-231"), ("dynamic:64-512@1-8t154-616",) * 2,
    ],
)  # fmt: skip
def test_text_is_canonical_and_its_folders_name_reads_back(bundle, text, canonical):
    profile, other = parse_profile(text, bundle), parse_profile("dynamic:64-128@1-2", bundle)
    assert profile.text == canonical
    for precision in ("fp16", "bf16", "fp32"):
        for profiles in ((profile,), (profile, other), (other, profile)):
            name = set_name(profiles, precision)
            assert windows_takes(name)
            assert read_set_name(name, bundle) == (profiles, precision)


def test_covers(bundle):
    profile = parse_profile("dynamic:64-256@2-4", bundle)
    inside = {"rows": 4, "samples": 2, "height": 128, "width": 256, "tokens": 77, "draws": 20}
    assert profile.covers(inside)
    for name, value in {"rows": 1, "samples": 5, "height": 512, "width": 32, "draws": 129, "tokens": 64}.items():
        assert not profile.covers({**inside, name: value})


def test_tokens_are_whole_chunks_and_tuned_for_the_least(bundle):
    assert parse_profile("256@2", bundle).symbols["tokens"] == (77, 77, 77)
    profile = parse_profile("256@2t77-231", bundle)
    assert profile.symbols["tokens"] == (77, 77, 231)
    ids = Binding(name="input_ids", dtype="int32", shape=("rows", "tokens"), lifetime="per_row")
    assert profile.ranges(ids) == ((2, 77), (2, 77), (2, 231))
    dims = {"rows": 2, "samples": 1, "height": 256, "width": 256, "draws": 1}
    assert [profile.covers({**dims, "tokens": tokens}) for tokens in (77, 154, 231, 308)] == [True] * 3 + [False]


def test_what_covers_dims_and_no_more_is_named_as_it_is_asked_for(bundle):
    dims = {"rows": 2, "samples": 1, "height": 256, "width": 128, "draws": 1}
    for tokens, text in ((77, "128x256@2"), (154, "128x256@2t154")):
        assert dims_text({**dims, "tokens": tokens}, (77, 77)) == text == parse_profile(text, bundle).text


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
        ("256@2t", "WIDTHxHEIGHT"), ("256@2t-154", "WIDTHxHEIGHT"), ("256t77@2", "WIDTHxHEIGHT"),
        ("256@2T77", "WIDTHxHEIGHT"), ("256@2t100", "multiples of 77 from 77 to 616 tokens"),
        ("256@2t0", "multiples of 77"), ("256@2t77-693", "multiples of 77"), ("256@2t231-77", "MIN ≤ MAX"),
    ],
)  # fmt: skip
def test_bad_text_is_refused_with_what_is_allowed(bundle, text, what):
    with pytest.raises(ProfileInvalid, match=what):
        parse_profile(text, bundle)


RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\..*)?", re.IGNORECASE)


def windows_takes(name: str) -> bool:
    printable = name.isascii() and name.isprintable() and not set(name) & set('<>:"/\\|?*')
    return printable and name[-1] not in ". " and not RESERVED.fullmatch(name)


@pytest.mark.parametrize("name", ["", "128@2.", "128@2.fp16", "128@2+", "+128@2", "128@2.fp8", "con", "128@2 64@1"])
def test_other_folders_are_none_of_ours(bundle, name):
    with pytest.raises(ProfileInvalid):
        read_set_name(name, bundle)


def test_a_folders_name_has_an_end(bundle):
    profiles = [parse_profile(f"{64 + 8 * k}x128@1-4", bundle) for k in range(20)]
    with pytest.raises(ProfileInvalid, match=rf"20 profiles, .* {MAX_NAME} characters.*--shared"):
        set_name(profiles, "fp16")
    assert len(set_name(profiles[:12], "fp16")) <= MAX_NAME


def of_size(bundle: Bundle, side: int, low: int, high: int, step: int = 8, family: str = "sd") -> Bundle:
    """The bundle as one of another family and other sizes."""
    defaults = msgspec.structs.replace(bundle.defaults, height=side, width=side)
    limits = Limits(min_px=low, max_px=high, multiple_px=step)
    return msgspec.structs.replace(bundle, family=family, defaults=defaults, limits=limits)


def texts(words: str, bundle: Bundle) -> list[str]:
    return [profile.text for profile in parse_profiles(words.split(), bundle)]


def test_a_word_stands_for_the_profiles_of_a_set(bundle):
    xl, emoji = of_size(bundle, 1024, 512, 2048), of_size(bundle, 256, 128, 512)
    assert texts("default", xl) == ["1024@1-2"]
    assert texts("portrait landscape", xl) == ["896x1152@1-2", "1152x896@1-2"]
    assert texts("dynamic batch", emoji) == ["dynamic:128-512@1-4", "256@2-8"]
    assert texts("long", emoji) == ["256@1-2t77-231"]
    one_chunk = msgspec.structs.replace(emoji.tokenizer, max_chunks=1)
    assert texts("long", msgspec.structs.replace(emoji, tokenizer=one_chunk)) == ["256@1-2"]
    assert texts("default 128@2 default square", emoji) == ["256@1-2", "128@2"]
    assert texts("default", of_size(bundle, 256, 128, 512, family="unheard of")) == ["256@1-2"]
    wide = msgspec.structs.replace(bundle, defaults=Defaults(
        height=128, width=256, num_inference_steps=4, guidance_scale=5.0, scheduler="euler"))  # fmt: skip
    assert texts("default", wide) == ["256x128@1-2"]


@pytest.mark.parametrize(("side", "low", "high", "step"), [(1024, 512, 2048, 8), (64, 64, 64, 8), (128, 100, 130, 64)])
def test_every_set_is_within_the_bundles_limits(bundle, side, low, high, step):
    odd = of_size(bundle, side, low, high, step)
    for name in named_sets(odd):
        assert parse_profiles([name], odd), name


def templated(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle as one of Z-Image's sizes, whose prompts stand in a template."""
    entry = Templated(file="tokenizer.json", prefix="a", suffix="b", pad_id=0, **changes)
    return msgspec.structs.replace(of_size(bundle, 1024, 512, 2048, 16, family="zimage"), tokenizer=entry)


@pytest.mark.parametrize(
    ("text", "canonical", "tokens"),
    [
        ("1024@1", "1024@1", (32, 256, 512)), ("1024@1t32-512", "1024@1", (32, 256, 512)),
        ("1024@1t32", "1024@1t32", (32, 32, 32)), ("1024@1t64-64", "1024@1t64", (64, 64, 64)),
        ("1280x720@1-2t32-96", "1280x720@1-2t32-96", (32, 64, 96)),
        ("dynamic:512-2048@1t480-512", "dynamic:512-2048@1t480-512", (480, 480, 512)),
    ],
)  # fmt: skip
def test_a_profile_of_templated_prompts_covers_every_length_unless_it_names_some(bundle, text, canonical, tokens):
    zimage = templated(bundle)
    profile = parse_profile(text, zimage)
    assert (profile.text, profile.symbols["tokens"]) == (canonical, tokens)
    name = set_name([profile], "fp16")
    assert read_set_name(name, zimage)[0] == (profile,)


def test_the_profile_of_one_templated_length_is_named_by_it(bundle):
    zimage = templated(bundle)
    dims = {"width": 1024, "height": 1024, "rows": 1}
    for tokens in zimage.tokenizer.lengths:
        text = dims_text({**dims, "tokens": tokens}, zimage.tokenizer.usual)
        assert text == f"1024@1t{tokens}"
        assert parse_profile(text, zimage).covers({**dims, "tokens": tokens})
    only = templated(bundle, max_tokens=32)
    assert dims_text({**dims, "tokens": 32}, only.tokenizer.usual) == "1024@1" == parse_profile("1024@1t32", only).text


@pytest.mark.parametrize("text", ["1024@1t77", "1024@1t0", "1024@1t544", "1024@1t32-40", "1024@1t64-32"])
def test_other_lengths_of_templated_prompts_are_refused(bundle, text):
    with pytest.raises(ProfileInvalid, match=r"multiples of 32 from 32 to 512 tokens|MIN ≤ MAX"):
        parse_profile(text, templated(bundle))


def test_the_sets_of_zimage_cover_every_prompt(bundle):
    zimage = templated(bundle)
    assert texts("default", zimage) == ["1024@1-2"]
    assert texts("shapes", zimage) == ["1024@1-2", "896x1152@1-2", "1152x896@1-2"]
    assert texts("short", zimage) == ["1024@1-2t32-96"]
    assert (texts("wide", zimage), texts("tall", zimage)) == (["1280x720@1-2"], ["720x1280@1-2"])
    for name in named_sets(zimage):
        covered = [profile.symbols["tokens"] for profile in parse_profiles([name], zimage)]
        assert name == "short" or all((one.min, one.max) == (32, 512) for one in covered)


@pytest.mark.parametrize("size", [
    "512", "2048", "1280x720", "720x1280", "2048x1152", "1152x2048", "1024x576", "1360x768", "1920x1088", "528x2048",
])  # fmt: skip
def test_sizes_of_zimage_are_multiples_of_16_from_512_to_2048(bundle, size):
    width, _, height = size.partition("x")
    profile = parse_profile(f"{size}@1", templated(bundle))
    assert (profile.symbols["width"].max, profile.symbols["height"].max) == (int(width), int(height or width))


@pytest.mark.parametrize("size", ["496", "2064", "1920x1080", "1366x768", "1024x1032", "dynamic:512-2050"])
def test_other_sizes_of_zimage_are_refused_with_what_is_allowed(bundle, size):
    with pytest.raises(ProfileInvalid, match="multiples of 16 from 512 to 2048 px"):
        parse_profile(f"{size}@1", templated(bundle))


def test_an_unknown_name_tells_the_sets_and_the_forms(bundle):
    with pytest.raises(ProfileInvalid, match=r"no set of 'toy'; allowed: default; WIDTHxHEIGHT@MIN-MAX or dynamic"):
        parse_profiles(["portrait"], bundle)
    with pytest.raises(
        ProfileInvalid, match="default, batch, square, portrait, landscape, shapes, dynamic, long; WIDTH"
    ):
        parse_profiles(["defalt"], of_size(bundle, 256, 128, 512))
