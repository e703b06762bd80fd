"""Prompts become rows of equal length: chunks of 77 ids with their weights; what did not fit is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from engine.errors import BundleDamaged, BundleInvalid
from runtime.prompt import fragments
from runtime.text import Tokenizer
from tests.fake_bundle import edit

BOUNDED = settings(max_examples=150, derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module")
def tokenizer(bundle_folder):
    return Tokenizer(bundle_folder, load_bundle(bundle_folder))


def ids_of(tokenizer, text, emphasis=True):
    prompts = [(text, emphasis)]
    return tokenizer.rows(prompts, tokenizer.length(prompts))["input_ids"][0]


def test_every_row_has_whole_chunks(tokenizer):
    texts = ["", "a", "x" * 74, "x" * 75, "x" * 76, "x" * 4000, "naïve 北京 🙂", "a\0b\n\t"]
    assert [tokenizer.length([(text, True)]) for text in texts] == [77, 77, 77, 77, 154, 231, 77, 77]
    prompts = [(text, True) for text in texts]
    rows = tokenizer.rows(prompts, tokenizer.length(prompts))
    assert {name: (array.shape, array.dtype.name) for name, array in rows.items()} == {
        "input_ids": ((len(texts), 231), "int32"), "token_weights": ((len(texts), 231), "float32"),
    }  # fmt: skip
    chunks = rows["input_ids"].reshape(-1, 77)
    assert (chunks[:, 0] == 0).all()
    assert (chunks[:, -1] == 1).all()
    assert (rows["token_weights"] == 1).all()


def test_a_shorter_prompt_is_filled_up_with_chunks_of_no_text(tokenizer):
    row = tokenizer.rows([("a", True), ("x" * 80, True)], 154)["input_ids"][0]
    assert row[:77].tolist() == ids_of(tokenizer, "a").tolist()
    assert row[77:].tolist() == ids_of(tokenizer, "").tolist()


def test_a_text_has_the_same_ids_beside_any_other(tokenizer):
    texts = ["a cat", "", "x" * 70]
    rows = tokenizer.rows([(text, True) for text in texts], 77)["input_ids"]
    assert all(np.array_equal(ids_of(tokenizer, text), row) for text, row in zip(texts, rows, strict=True))


def test_weights_lie_on_their_tokens(tokenizer):
    rows = tokenizer.rows([("ab(cd:1.5)[e", True), ("ab(cd:1.5)[e", False)], 77)
    assert rows["token_weights"][0, :8].tolist() == pytest.approx([1, 1, 1, 1.5, 1.5, 1 / 1.1, 1, 1])
    assert (rows["token_weights"][1] == 1).all()
    assert (rows["input_ids"][1] != 1).sum() == 13  # every character is a token


def test_break_begins_a_chunk(tokenizer):
    assert len(ids_of(tokenizer, "a BREAK b")) == 154
    assert len(ids_of(tokenizer, "a BREAK b", emphasis=False)) == 77


@pytest.mark.parametrize(
    ("length", "dropped"), [(0, 0), (1, 0), (75, 0), (76, 0), (225, 0), (226, 1), (300, 75), (4000, 3775)]
)
def test_dropped_tokens_are_those_beyond_three_chunks(tokenizer, length, dropped):
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


@pytest.mark.parametrize("name", ["bos_id", "eos_id", "pad_id"])
def test_ids_that_the_tokenizer_does_not_have_are_refused(own_bundle, name):
    edit(own_bundle, lambda body: body["tokenizer"].update({name: 5000}))
    with pytest.raises(BundleInvalid) as caught:
        Tokenizer(own_bundle, load_bundle(own_bundle))
    assert (caught.value.actual, caught.value.allowed) == ("no token 5000", f"one that is bundle.json's {name}")


def test_padding_and_truncation_of_the_file_itself_do_not_count(own_bundle, tokenizer):
    path = own_bundle / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation": truncation}))
    edit(own_bundle, lambda body: None)
    other = Tokenizer(own_bundle, load_bundle(own_bundle))
    assert np.array_equal(ids_of(other, "x" * 80), ids_of(tokenizer, "x" * 80))


def test_its_hash_is_checked_before_it_is_read(own_bundle):
    path = own_bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"</s>", b"</z>"))
    with pytest.raises(BundleDamaged, match="sha256"):
        Tokenizer(own_bundle, load_bundle(own_bundle))


WORDS = st.sampled_from(["a cat", " ", ", ", "naïve", "北京", "🙂", "it's", "\n", "PIZZA", "1234", "-", "on teal"])
TEXTS = st.text(max_size=40) | st.lists(WORDS, max_size=12).map("".join)


@pytest.fixture(scope="module")
def both(emoji_bundle, root):
    """The exported tokenizer of a real vocabulary, and the one that diffusers would use."""
    pytest.importorskip("torch")
    from transformers import CLIPTokenizer

    source = CLIPTokenizer.from_pretrained(root / "models" / "emoji" / "tokenizer", local_files_only=True)
    return Tokenizer(emoji_bundle, load_bundle(emoji_bundle)), source


@BOUNDED
@given(text=TEXTS)
def test_a_prompt_of_one_chunk_has_the_ids_of_cliptokenizer(both, text):
    ours, source = both
    expected = source(text, padding="max_length", max_length=77, truncation=True).input_ids
    found = ids_of(ours, text, emphasis=False).tolist()
    assert found == expected or len(found) > 77


def test_a_long_prompt_has_the_same_tokens_chunk_by_chunk(both):
    ours, source = both
    text = "a cat left of a pizza on white, " * 20
    whole = source(text, add_special_tokens=False).input_ids
    found = ids_of(ours, text).reshape(-1, 77)
    assert len(found) == -(-len(whole) // 75)
    specials = {source.bos_token_id, source.eos_token_id}
    assert [one for one in found.ravel().tolist() if one not in specials] == whole


@BOUNDED
@given(parts=st.lists(WORDS.filter(str.strip), min_size=1, max_size=6), marks=st.lists(st.booleans(), min_size=6))
def test_words_have_the_same_tokens_in_brackets_and_out_of_them(both, parts, marks):
    """Pieces that are parted by spaces: BPE never sees past one, so reading them apart changes no id."""
    ours, _ = both
    marked = " ".join(f"({part}:1.3)" if on else part for part, on in zip(parts, marks, strict=False))
    plain = " ".join(parts)
    assert "".join(one.text for one in fragments(marked)) == plain
    assert ids_of(ours, marked).tolist() == ids_of(ours, plain).tolist()
