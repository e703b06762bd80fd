"""Prompts → rows of token ids and weights, by the bundle's own tokenizer.json.

Does not know what the ids mean to a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from engine.binding import Array, Float32Array
from engine.bundle import Bundle, verified_path
from engine.errors import BundleInvalid
from engine.tokens import Chunked, Templated
from runtime.chunks import Chunks, Word, chunked
from runtime.prompt import Fragment, fragments
from runtime.template import Framed, framed

Prompt = tuple[str, bool]
"""A text, and whether its brackets are emphasis."""
KEPT = 256
"""Texts whose tokens stay: each is asked for its length, its rows and what was dropped."""


class Row(NamedTuple):
    """A prompt as it is fed, both (tokens,): ids and their weights."""

    ids: NDArray[np.int32]
    weights: Float32Array


class _Reader(Protocol):
    """Reads one prompt. length: padding included. dropped: tokens of it that are not read."""

    def length(self, prompt: Prompt) -> int: ...

    def row(self, prompt: Prompt, tokens: int) -> Row: ...

    def dropped(self, prompt: Prompt) -> int: ...


class Tokenizer:
    """Encodes texts to what the bundle says of them: chunks of ids, or ids within a template.

    unequal: whether the rows of a sample may have prompts of different lengths: chunks of no text fill up the shorter
    one; in a template the denoiser needs a mask for it.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        path, entry = verified_path(folder, bundle, bundle.tokenizer.file), bundle.tokenizer
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise _invalid(path, str(error), "a tokenizers file") from error
        fast.no_truncation()
        fast.no_padding()
        for name, token in entry.special_ids.items():
            if fast.id_to_token(token) is None:
                raise _invalid(path, f"no token {token}", f"one that is bundle.json's {name}")
        self.unequal = bundle.masked or isinstance(entry, Chunked)
        self._reader: _Reader = _InChunks(fast, entry) if isinstance(entry, Chunked) else _InTemplate(fast, entry)

    def length(self, prompts: Sequence[Prompt]) -> int:
        """The tokens of the longest, specials and padding included."""
        return max(map(self._reader.length, prompts))

    def rows(self, prompts: Sequence[Prompt], tokens: int) -> dict[str, Array]:
        """`input_ids` int32 and `token_weights` float32 of (prompts, tokens); shorter ones are filled up: with chunks
        of no text, or in a template with padding, where the weights are 0.

        tokens: at least their length, and one of the bundle's lengths.
        """
        rows = [self._reader.row(prompt, tokens) for prompt in prompts]
        return {"input_ids": np.array([row.ids for row in rows]), "token_weights": np.array([r.weights for r in rows])}

    def dropped_tokens(self, text: str, emphasis: bool = True) -> int:
        """How many tokens of the text do not fit the most there may be, and are not read."""
        return self._reader.dropped((text, emphasis))


class _InChunks:
    """Chunks of max_tokens ids, each with its own bos, eos and padding."""

    def __init__(self, fast: FastTokenizer, entry: Chunked) -> None:
        self._fast, self._entry = fast, entry
        self._chunks = lru_cache(KEPT)(self._chunked)

    def length(self, prompt: Prompt) -> int:
        return self._entry.max_tokens * len(self._chunks(*prompt))

    def row(self, prompt: Prompt, tokens: int) -> Row:
        found, empty = self._chunks(*prompt), self._chunks("", False)
        filled = [found, *[empty] * (tokens // self._entry.max_tokens - len(found))]
        return Row(*(np.concatenate([part.ravel() for part in parts])
                     for parts in ([c.ids for c in filled], [c.weights for c in filled])))  # fmt: skip

    def dropped(self, prompt: Prompt) -> int:
        return self._chunks(*prompt).dropped

    def _chunked(self, text: str, emphasis: bool) -> Chunks:
        return chunked(self._words(fragments(text) if emphasis else [Fragment(text, 1.0)]), self._entry)

    def _words(self, pieces: Sequence[Fragment]) -> Iterator[Word]:
        encodings = self._fast.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        for piece, encoding in zip(pieces, encodings, strict=True):
            new_chunk = piece.new_chunk
            for ids in _words_of(encoding):
                yield Word(ids, piece.weight, new_chunk)
                new_chunk = False


class _InTemplate:
    """Ids of a text within a template. Its brackets are text: a language model reads them."""

    def __init__(self, fast: FastTokenizer, entry: Templated) -> None:
        self._entry = entry
        self._framed = lru_cache(KEPT)(lambda text: framed(text, fast, entry))

    def length(self, prompt: Prompt) -> int:
        return self._read(prompt).length(self._entry.multiple)

    def row(self, prompt: Prompt, tokens: int) -> Row:
        found = self._read(prompt).ids
        ids, weights = np.full(tokens, self._entry.pad_id, np.int32), np.zeros(tokens, np.float32)
        ids[: len(found)], weights[: len(found)] = found, 1
        return Row(ids, weights)

    def dropped(self, prompt: Prompt) -> int:
        return self._read(prompt).dropped

    def _read(self, prompt: Prompt) -> Framed:
        return self._framed(prompt[0])


def _words_of(encoding: Encoding) -> Iterator[tuple[int, ...]]:
    """The ids of each word; a token that belongs to none, as a special one, is a word of its own."""
    numbered = [(-1 - k if word is None else word, token)
                for k, (word, token) in enumerate(zip(encoding.word_ids, encoding.ids, strict=True))]  # fmt: skip
    for _, group in groupby(numbered, key=lambda one: one[0]):
        yield tuple(token for _, token in group)


def _invalid(path: Path, actual: str, allowed: str) -> BundleInvalid:
    return BundleInvalid(str(path), actual=actual, allowed=allowed, remedy="Run `zturbo export` again.")
