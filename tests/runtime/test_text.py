"""Prompts become exactly 77 ids, and what did not fit is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.bundle import load_bundle
from engine.errors import BundleDamaged, BundleInvalid
from runtime.text import Tokenizer
from tests.fake_bundle import edit


@pytest.fixture(scope="module")
def tokenizer(bundle_folder):
    return Tokenizer(bundle_folder, load_bundle(bundle_folder))


def test_every_text_has_77_ids(tokenizer):
    texts = ["", "a", "x" * 74, "x" * 75, "x" * 76, "x" * 4000, "naïve 北京 🙂", "a\0b\n\t"]
    ids = tokenizer.encode(texts)
    assert ids.shape == (len(texts), 77)
    assert ids.dtype == np.int32
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 1).all()


def test_a_text_has_the_same_ids_beside_any_other(tokenizer):
    texts = ["a cat", "", "x" * 500]
    assert all(
        np.array_equal(tokenizer.encode([text])[0], row)
        for text, row in zip(texts, tokenizer.encode(texts), strict=True)
    )


@pytest.mark.parametrize(("length", "dropped"), [(0, 0), (1, 0), (75, 0), (76, 1), (150, 75), (151, 76), (4000, 3925)])
def test_dropped_tokens_are_those_beyond_75(tokenizer, length, dropped):
    assert tokenizer.dropped_tokens("x" * length) == dropped


BROKEN = {
    "empty": b"", "cut": b"{", "no fields": b"{}", "binary": b"\x00\xff", "deep": b"[" * 100_000, "a list": b"[]",
    "another version": b'{"version": "9.0", "model": {"type": "BPE"}}',
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_bundle_error(own_bundle, name):
    (own_bundle / "tokenizer.json").write_bytes(BROKEN[name])
    edit(own_bundle, lambda body: None)
    with pytest.raises(BundleInvalid) as caught:
        Tokenizer(own_bundle, load_bundle(own_bundle))
    assert caught.value.subject.endswith("tokenizer.json")
    assert caught.value.actual
    assert caught.value.remedy == "Run `zturbo export` again."


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"padding": None}, "2 or 77 tokens per text"),
        ({"truncation": None}, "77 or 310 tokens per text"),
        ({"padding": None, "truncation": None}, "2 or 310 tokens per text"),
    ],
)
def test_a_tokenizer_of_another_length_is_refused(own_bundle, change, found):
    path = own_bundle / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    edit(own_bundle, lambda body: None)
    with pytest.raises(BundleInvalid) as caught:
        Tokenizer(own_bundle, load_bundle(own_bundle))
    assert (caught.value.actual, caught.value.allowed) == (found, "77, by its own padding and truncation")


def test_its_hash_is_checked_before_it_is_read(own_bundle):
    path = own_bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"</s>", b"</z>"))
    with pytest.raises(BundleDamaged, match="sha256"):
        Tokenizer(own_bundle, load_bundle(own_bundle))
