"""Prompts in a template: tokenized whole, cut at the most, padded to a multiple; rows, lengths, guidance, refusals."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from engine.errors import BundleInvalid, RequestInvalid
from runtime.denoise import Step
from runtime.pipeline import Pipeline
from runtime.request import Request
from runtime.text import Tokenizer
from tests.fake_backend import FakeBackend, conditioning, denoiser
from tests.fake_bundle import edit, sigmas
from tests.fake_template import AROUND, BEHIND, PAD_ID, PREFIX, START, STOP, SUFFIX, chat_tokenizer, write_templated

BOUNDED = settings(max_examples=150, derandomize=True, deadline=None, database=None)
PIECES = [*"a (:]\n\r\té北", "e\u0301", START, STOP, PREFIX, "cat " * 30]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{masked: the bundle's folder}, to be read only."""
    root = tmp_path_factory.mktemp("templated")
    for masked in (False, True):
        write_templated(root / str(masked), masked=masked)
    return {masked: root / str(masked) for masked in (False, True)}


@pytest.fixture(scope="module")
def tokenizer(folders):
    return loaded(folders[False])


@pytest.fixture
def make_pipeline(folders):
    bundles = {masked: load_bundle(folder) for masked, folder in folders.items()}
    return lambda masked=False, **options: Pipeline(folders[masked], bundles[masked], FakeBackend(**options))


def loaded(folder):
    return Tokenizer(folder, load_bundle(folder))


def row_of(tokenizer, text, tokens=None):
    prompts = [(text, True)]
    rows = tokenizer.rows(prompts, tokenizer.length(prompts) if tokens is None else tokens)
    return rows["input_ids"][0], rows["token_weights"][0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 32), ("x" * (32 - AROUND), 32), ("x" * (33 - AROUND), 64), ("x" * 470, 512), ("x" * 5000, 512)],
)
def test_a_prompt_is_padded_to_the_next_multiple_of_32(tokenizer, text, tokens):
    ids, weights = row_of(tokenizer, text)
    real = min(len(text) + AROUND, 512)
    assert (ids.shape, ids.dtype.name, weights.dtype.name) == ((tokens,), "int32", "float32")
    assert weights.tolist() == [1] * real + [0] * (tokens - real)
    assert (ids[real:] == PAD_ID).all()
    assert (ids[:real] != PAD_ID).all()


@BOUNDED
@given(TEXTS)
def test_its_ids_are_those_of_the_whole_text(tokenizer, text):
    """A newline in front joins the template's own, and a special token's word is the token."""
    expected = chat_tokenizer().encode(PREFIX + text + SUFFIX).ids
    ids, weights = row_of(tokenizer, text)
    assert ids[weights == 1].tolist() == expected[:512]
    assert len(ids) == min(-(-len(expected) // 32) * 32, 512)
    assert tokenizer.dropped_tokens(text) == max(len(expected) - BEHIND - 512, 0)


def test_newlines_in_front_join_the_templates_own(tokenizer):
    apart = [*chat_tokenizer().encode(PREFIX).ids, *chat_tokenizer().encode("\na" + SUFFIX).ids]
    _, weights = row_of(tokenizer, "\na")
    assert int(weights.sum()) == len(apart) - 1


def test_a_row_beside_a_longer_one_is_padded_further(tokenizer):
    short, long = row_of(tokenizer, "a"), row_of(tokenizer, "x" * 100)
    rows = tokenizer.rows([("a", True), ("x" * 100, True)], 128)
    assert rows["input_ids"].shape == rows["token_weights"].shape == (2, 128)
    assert rows["input_ids"][0].tolist() == short[0].tolist() + [PAD_ID] * 96
    assert rows["token_weights"][0].tolist() == short[1].tolist() + [0] * 96
    assert rows["input_ids"][1].tolist() == long[0].tolist()


def test_brackets_are_text(tokenizer):
    with_emphasis, without = (tokenizer.rows([("(a:1.5) [b] BREAK c", emphasis)], 64) for emphasis in (True, False))
    assert all(np.array_equal(with_emphasis[name], without[name]) for name in with_emphasis)
    assert int(with_emphasis["token_weights"].sum()) == len("(a:1.5) [b] BREAK c") + AROUND


@pytest.mark.parametrize(("length", "dropped"), [(0, 0), (506, 0), (507, 1), (600, 94)])
def test_dropped_tokens_are_the_texts_own_beyond_512(tokenizer, length, dropped):
    """6 tokens stand before the text; the suffix goes first, and is no part of the prompt."""
    assert tokenizer.dropped_tokens("x" * length) == dropped


def test_padding_that_the_file_does_not_know_is_refused(tmp_path):
    write_templated(tmp_path / "fake")
    edit(tmp_path / "fake", lambda body: body["tokenizer"].update(pad_id=5000))
    with pytest.raises(BundleInvalid, match="no token 5000"):
        loaded(tmp_path / "fake")


def by_hand(prompt, negative, guidance, steps, latents):
    """Euler in float64, with pos + g·(pos − neg)."""
    hidden = []
    for text in (prompt, negative):
        found = chat_tokenizer().encode(PREFIX + text + SUFFIX).ids
        ids, weights = np.full((1, 64), PAD_ID, np.int32), np.zeros((1, 64), np.float32)
        ids[0, : len(found)], weights[0, : len(found)] = found, 1
        hidden.append(conditioning(ids, weights, np.zeros(1, np.int32))[0])
    levels, x = sigmas(steps), sigmas(steps)[0] * latents.astype(np.float64)
    for now, after in pairwise(levels):
        at, level = x / np.sqrt(now**2 + 1), np.full(1, 1000 * now / 14)
        pos, neg = (denoiser(at, level, one)[0] for one in hidden)
        x = x + (after - now) * (pos + guidance * (pos - neg))
    return x


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 4.0])
def test_guidance_is_pos_and_g_times_the_difference(make_pipeline, masked, guidance):
    last: list[np.ndarray] = []
    latents = np.random.default_rng(3).standard_normal((1, 4, 16, 17)).astype(np.float32)
    request = Request(
        prompt="a cat in a hat, 1", negative_prompt="a dog that is long", guidance_scale=guidance,
        num_inference_steps=4, latents=latents,
    )  # fmt: skip
    pipeline = make_pipeline(masked)

    def keep(step: Step) -> None:
        last.append(step.latents())

    pipeline.generate(request, keep)
    expected = by_hand("a cat in a hat, 1", "a dog that is long", guidance, 4, latents)
    assert np.abs(last[-1] - expected).max() <= 1e-5 * np.abs(expected).max()  # float32 against float64
    assert {dims["rows"] for dims in pipeline.backend.allocated} == {1 if guidance == 0 else 2}


def test_guidance_is_off_by_default(make_pipeline):
    pipeline = make_pipeline()
    result = pipeline.generate(Request(prompt="a cat", negative_prompt="x" * 90))
    assert result.metadata["guidance_scale"] == 0
    assert {dims["rows"] for dims in pipeline.backend.allocated} == {1}


GUIDED = Request(prompt="x" * 60, negative_prompt="", guidance_scale=3.0, num_inference_steps=2, seed=1)


def test_guided_prompts_of_two_lengths_are_refused_without_a_mask(make_pipeline):
    pipeline = make_pipeline()
    with pytest.raises(RequestInvalid) as caught:
        pipeline.generate_many([Request(prompt="a cat", num_inference_steps=1), GUIDED])
    assert caught.value.subject == "request, prompt, negative_prompt"
    assert caught.value.actual == "96 tokens and 32 tokens, padding included"
    assert "guidance_scale=0" in caught.value.remedy
    assert "--masked" in caught.value.remedy
    assert not pipeline.backend.events


def test_with_a_mask_they_share_the_longers_tokens(make_pipeline):
    pipeline = make_pipeline(masked=True)
    pipeline.generate(GUIDED)
    assert {dims["tokens"] for dims in pipeline.backend.allocated} == {96}


def test_requests_of_one_padded_length_share_a_batch(make_pipeline):
    prompts = ["a cat", "x" * 60, "a dog", "y" * 70, "z" * 600, "a", "x" * 61]
    requests = [Request(prompt=text, seed=k, num_inference_steps=2) for k, text in enumerate(prompts)]
    alone = [make_pipeline().generate(request).arrays for request in requests]
    pipeline = make_pipeline(max_rows=8)
    together = pipeline.generate_many(requests)
    assert all(np.array_equal(one, result.arrays) for one, result in zip(alone, together, strict=True))
    assert {(dims["tokens"], dims["rows"]) for dims in pipeline.backend.allocated} == {(32, 3), (96, 3), (512, 1)}
    assert together[4].metadata["dropped_tokens"] == {"prompt": 94, "negative_prompt": 0}


def test_what_bundle_json_says_of_a_template(tmp_path):
    bundle = write_templated(tmp_path / "fake", masked=True)
    body = json.loads((tmp_path / "fake" / "bundle.json").read_text())
    assert body["tokenizer"] == {
        "kind": "templated", "file": "tokenizer.json", "prefix": PREFIX, "suffix": SUFFIX, "pad_id": PAD_ID,
        "multiple": 32, "max_tokens": 512,
    }  # fmt: skip
    assert bundle.tokenizer.lengths == range(32, 513, 32)
