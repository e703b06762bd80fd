"""bundle.json: whatever is wrong with it or with a file it names is a BundleError, and nothing is written."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from engine.bundle import FILE, Bundle, body_sha256, decode_bundle, encode_bundle, load_bundle, sealed, verified_path
from engine.errors import (
    BundleError,
    BundleInvalid,
    BundleMissing,
    BundleVersion,
    OptionInvalid,
)
from tests.fake_bundle import SIGNATURES, edit


@pytest.fixture(scope="module")
def raw(bundle_folder):
    return (bundle_folder / FILE).read_bytes()


def test_a_good_bundle_loads_and_writes_itself_again(bundle_folder, raw):
    bundle = load_bundle(bundle_folder)
    assert bundle.name == "fake"
    assert encode_bundle(bundle) == raw
    assert bundle.sha256 == body_sha256(bundle) == sealed(bundle).sha256
    assert [graph.name for graph in bundle.graphs("fp16")] == list(SIGNATURES)
    assert [graph.name for graph in bundle.graphs("fp16") if graph.optional] == ["encoder", "preview"]
    assert all(verified_path(bundle_folder, bundle, name) == bundle_folder / name for name in bundle.files)


def test_a_precision_that_is_not_there(own_bundle):
    edit(own_bundle, lambda body: body["variants"].pop("fp16"))
    with pytest.raises(OptionInvalid, match="bundle 'fake', precision: got fp16; allowed: fp32"):
        load_bundle(own_bundle).graphs("fp16")


class TestNoBundle:
    def test_no_folder(self, refused, tmp_path):
        error = refused(tmp_path / "emoji", BundleMissing)
        assert error.actual == "no readable bundle.json (No such file or directory)"
        assert error.remedy == f'Run `zturbo export SOURCE --out "{tmp_path / "emoji"}"`.'

    def test_an_empty_folder(self, refused, tmp_path):
        refused(tmp_path, BundleMissing)

    def test_a_file_instead_of_a_folder(self, refused, tmp_path):
        (tmp_path / "fake").write_text("mine")
        refused(tmp_path / "fake", BundleMissing)

    def test_a_folder_instead_of_the_file(self, refused, tmp_path):
        (tmp_path / FILE).mkdir()
        refused(tmp_path, BundleMissing)

    def test_a_link_to_nowhere(self, refused, tmp_path):
        (tmp_path / FILE).symlink_to("nowhere")
        refused(tmp_path, BundleMissing)

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
    def test_a_name_that_no_file_system_takes(self, tmp_path, name):
        with pytest.raises(BundleMissing, match=r"no readable bundle\.json"):
            load_bundle(tmp_path / name)


GARBAGE = {
    "nothing": b"",
    "spaces": b" \n",
    "binary": bytes(range(256)),
    "zeros": b"\0" * 100,
    "text": b"a bundle",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no keys": b"{}",
    "version alone": b'{"version": 5}',
    "not UTF-8": b'{"version": 5, "name": "\xff"}',
    "a key not UTF-8": b'{"version": 5, "\xff": 1}',
    "a lone surrogate": b'{"version": 5, "name": "\\ud800"}',
    "UTF-16": '{"version": 5}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"version": 5}',
    "two": b'{"version": 5}{"version": 5}',
    "NaN": b'{"version": NaN}',
    "deep": b"[" * 1_000_000,
    "deep in an unknown key": b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b',"version":5}',
    "deep in a known key": b'{"version": 5, "name": ' + b'{"a":' * 1_000_000,
    "a long number": b'{"version": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(refused, own_bundle, name):
    (own_bundle / FILE).write_bytes(GARBAGE[name])
    error = refused(own_bundle, BundleInvalid)
    assert error.subject == str(own_bundle / FILE)
    assert error.allowed == "what export wrote"
    assert error.remedy == "Run `zturbo export` again for 'fake'."


def test_every_beginning_of_the_file_is_refused(own_bundle, raw):
    end = len(raw.rstrip())
    for length in {*range(0, end, 97), end - 1}:
        with pytest.raises(BundleInvalid):
            decode_bundle(raw[:length], own_bundle / FILE)


@pytest.mark.parametrize("version", [0, -1, 1, 2, 3, 4, 6, 99, 10**30])
def test_another_version(refused, own_bundle, raw, version):
    (own_bundle / FILE).write_bytes(raw.replace(b'"version": 5', b'"version": %d' % version))
    error = refused(own_bundle, BundleVersion)
    assert (error.actual, error.allowed) == (f"version {version}", "version 5")


def test_another_version_is_told_before_its_unknown_keys(refused, own_bundle):
    (own_bundle / FILE).write_bytes(b'{"version": 6, "new": {"schema": []}}')
    refused(own_bundle, BundleVersion)


@pytest.mark.parametrize("version", [b'"3"', b"null", b"1.5", b"true", b"[1]", b"{}"])
def test_a_version_of_another_type(refused, own_bundle, raw, version):
    (own_bundle / FILE).write_bytes(raw.replace(b'"version": 5', b'"version": ' + version))
    assert "version" in refused(own_bundle, BundleInvalid).actual


def test_no_version(refused, own_bundle, raw):
    body = json.loads(raw)
    del body["version"]
    (own_bundle / FILE).write_text(json.dumps(body))
    assert "version" in refused(own_bundle, BundleInvalid).actual


def paths_of(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


def at(body, path):
    for key in path:
        body = body[key]
    return body


def test_a_value_edited_by_hand_is_refused(raw, own_bundle):
    """Every value of the file in turn, with the stale hash still there."""
    body = json.loads(raw)
    for path in list(paths_of(body)):
        value = at(body, path)
        if isinstance(value, (dict, list)) or path == ("version",):
            continue
        changed = json.loads(raw)
        at(changed, path[:-1])[path[-1]] = value + 1 if isinstance(value, (int, float)) else f"{value}x"
        with pytest.raises(BundleInvalid):
            decode_bundle(json.dumps(changed).encode(), own_bundle / FILE)


def test_a_stale_hash_is_named(refused, own_bundle, raw):
    (own_bundle / FILE).write_bytes(raw.replace(b'"guidance_scale": 5.0', b'"guidance_scale": 6.0'))
    assert "does not match its own sha256" in refused(own_bundle, BundleInvalid).actual


def test_unknown_and_missing_keys_are_refused_in_every_object(raw, own_bundle):
    body = json.loads(raw)
    free = {"made_with", "settings", "carried", "files", "variants", "dims", "fp16_error", "schedulers", "refused"}
    may_lack = {"origin", "carried", "hoisted_from", "only_with", "loras", "lora_inputs", "largest"}
    may_lack |= {"masked", "part_counts"}
    for path in list(paths_of(body)):
        if not isinstance(at(body, path), dict) or (path and path[-1] in {*free, "largest"}):
            continue
        changed = json.loads(raw)
        at(changed, path)["unknown"] = 1
        with pytest.raises(BundleInvalid, match="unknown"):
            decode_bundle(json.dumps(changed).encode(), own_bundle / FILE)
        for key in set(at(body, path)) - may_lack:
            changed = json.loads(raw)
            del at(changed, path)[key]
            with pytest.raises(BundleInvalid):
                decode_bundle(json.dumps(changed).encode(), own_bundle / FILE)


def test_the_order_of_keys_and_spaces_mean_nothing(raw, bundle_folder):
    body = json.loads(raw)
    backwards = json.dumps(dict(reversed(body.items()))).encode()
    assert decode_bundle(backwards, bundle_folder / FILE) == load_bundle(bundle_folder)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_loads_equal_or_is_refused(raw, own_bundle, seed):
    rng, original, refusals = random.Random(seed), decode_bundle(raw, own_bundle / FILE), 0
    for _ in range(200):
        mutated = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            place = rng.randrange(len(mutated))
            kind = rng.randrange(4)
            if kind == 0:
                mutated[place] = rng.randrange(256)
            elif kind == 1:
                mutated[place] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del mutated[place]
            else:
                mutated.insert(place, rng.choice(b'0123456789-.eE{}[]",:\\ntu \x00\xff'))
        try:
            assert decode_bundle(bytes(mutated), own_bundle / FILE) == original
        except BundleError:
            refusals += 1
    assert refusals > 150


NUMBERS = [
    ("latents", "factor"),
    ("latents", "channels"),
    ("limits", "multiple_px"),
    ("limits", "min_px"),
    ("limits", "max_px"),
    ("defaults", "height"),
    ("defaults", "width"),
    ("defaults", "num_inference_steps"),
    ("tokenizer", "max_chunks"),
    ("tables", "rows"),
    ("reference", "loop", "evaluations"),
    ("tables", "schedulers", "euler", "min_steps"),
    ("tables", "schedulers", "euler", "max_steps"),
]


@pytest.mark.parametrize("path", NUMBERS, ids="-".join)
@pytest.mark.parametrize("value", [0, -8])
def test_counts_are_positive(refused, own_bundle, raw, path, value):
    body = json.loads(raw)
    at(body, path[:-1])[path[-1]] = value
    (own_bundle / FILE).write_text(json.dumps(body))
    assert "Expected `int` >= 1" in refused(own_bundle, BundleInvalid).actual


@pytest.mark.parametrize(
    ("path", "value", "least"),
    [(("tokenizer", "max_tokens"), 2, 3), (("tokenizer", "pad_id"), -1, 0), (("max_clip_skip",), -1, 0)],
)
def test_what_prompts_need(refused, own_bundle, raw, path, value, least):
    body = json.loads(raw)
    at(body, path[:-1])[path[-1]] = value
    (own_bundle / FILE).write_text(json.dumps(body))
    assert f"Expected `int` >= {least}" in refused(own_bundle, BundleInvalid).actual


def test_big_numbers_in_settings_are_no_crash(own_bundle):
    settings = {"x": 10**30, "y": [None, 1e300]}
    edit(own_bundle, lambda body: body["tables"]["schedulers"]["euler"].update(settings=settings))
    assert load_bundle(own_bundle).tables.schedulers["euler"].settings == settings


def test_bundles_are_frozen(bundle_folder):
    with pytest.raises(AttributeError):
        load_bundle(bundle_folder).name = "other"
    assert isinstance(load_bundle(bundle_folder), Bundle)
    assert msgspec.json.decode((bundle_folder / FILE).read_bytes())["name"] == "fake"
