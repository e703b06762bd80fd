"""Prompts → rows of token ids and weights, by the bundle's own tokenizer.json.

Does not know what the ids mean to a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from engine.binding import Array
from engine.bundle import Bundle, verified_path
from engine.errors import BundleInvalid
from runtime.chunks import Chunks, Word, chunked
from runtime.prompt import Fragment, fragments

Prompt = tuple[str, bool]
"""A text, and whether its brackets are emphasis."""
KEPT = 256
"""Texts whose chunks stay: each is asked for its length, its rows and what was dropped."""


class Tokenizer:
    """Encodes texts to chunks of max_tokens ids, each with its own bos, eos and padding."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        path, self._entry = verified_path(folder, bundle, bundle.tokenizer.file), bundle.tokenizer
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise _invalid(path, str(error), "a tokenizers file") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for name in ("bos_id", "eos_id", "pad_id"):
            if self._tokenizer.id_to_token(getattr(self._entry, name)) is None:
                raise _invalid(path, f"no token {getattr(self._entry, name)}", f"one that is bundle.json's {name}")
        self.chunks = lru_cache(KEPT)(self._chunks)

    def length(self, prompts: Sequence[Prompt]) -> int:
        """The tokens of the longest, specials and padding included."""
        return self._entry.max_tokens * max(len(self.chunks(*prompt)) for prompt in prompts)

    def rows(self, prompts: Sequence[Prompt], tokens: int) -> dict[str, Array]:
        """`input_ids` int32 and `token_weights` float32 of (prompts, tokens); shorter ones are filled up with chunks
        of no text.

        tokens: at least their length, and a multiple of max_tokens.
        """
        found, empty = [self.chunks(*prompt) for prompt in prompts], self.chunks("", False)
        filled = [[one, *[empty] * (tokens // self._entry.max_tokens - len(one))] for one in found]
        return {
            "input_ids": np.array([np.concatenate([c.ids.ravel() for c in row]) for row in filled]),
            "token_weights": np.array([np.concatenate([c.weights.ravel() for c in row]) for row in filled]),
        }

    def dropped_tokens(self, text: str, emphasis: bool = True) -> int:
        """How many tokens of the text do not fit the most chunks there may be, and are not read."""
        return self.chunks(text, emphasis).dropped

    def _chunks(self, text: str, emphasis: bool = True) -> Chunks:
        return chunked(self._words(fragments(text) if emphasis else [Fragment(text, 1.0)]), self._entry)

    def _words(self, pieces: Sequence[Fragment]) -> Iterator[Word]:
        encodings = self._tokenizer.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        for piece, encoding in zip(pieces, encodings, strict=True):
            new_chunk = piece.new_chunk
            for ids in _words_of(encoding):
                yield Word(ids, piece.weight, new_chunk)
                new_chunk = False


def _words_of(encoding: Encoding) -> Iterator[tuple[int, ...]]:
    """The ids of each word; a token that belongs to none, as a special one, is a word of its own."""
    numbered = [(-1 - k if word is None else word, token)
                for k, (word, token) in enumerate(zip(encoding.word_ids, encoding.ids, strict=True))]  # fmt: skip
    for _, group in groupby(numbered, key=lambda one: one[0]):
        yield tuple(token for _, token in group)


def _invalid(path: Path, actual: str, allowed: str) -> BundleInvalid:
    return BundleInvalid(str(path), actual=actual, allowed=allowed, remedy="Run `zturbo export` again.")
