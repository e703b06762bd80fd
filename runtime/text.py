"""Prompts → token ids, by the bundle's own tokenizer.json. Does not know what the ids mean to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from engine.bundle import Bundle, verified_path
from engine.errors import BundleInvalid


class Tokenizer:
    """Encodes texts to rows of exactly max_tokens ids."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        path = verified_path(folder, bundle, bundle.tokenizer.file)
        self.max_tokens = bundle.tokenizer.max_tokens
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise _invalid(path, str(error), "a tokenizers file") from error
        lengths = {len(self._tokenizer.encode(text).ids) for text in ("", "a " * 2 * self.max_tokens)}
        if lengths != {self.max_tokens}:
            found = f"{' or '.join(map(str, sorted(lengths)))} tokens per text"
            raise _invalid(path, found, f"{self.max_tokens}, by its own padding and truncation")

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """(texts, max_tokens) int32; a longer text is cut, `dropped_tokens` says by how much."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return np.array([encoding.ids for encoding in encodings], np.int32).reshape(len(texts), self.max_tokens)

    def dropped_tokens(self, text: str) -> int:
        """How many tokens of the text do not fit and are not read."""
        overflow = self._tokenizer.encode(text).overflowing
        return sum(sum(1 - masked for masked in part.special_tokens_mask) for part in overflow)


def _invalid(path: Path, actual: str, allowed: str) -> BundleInvalid:
    return BundleInvalid(str(path), actual=actual, allowed=allowed, remedy="Run `zturbo export` again.")
