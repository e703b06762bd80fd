"""What bundle.json says of prompts: which tokenizer, and what its tokens fill: chunks, or a template. Reads none."""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
MULTIPLE, MAX_TOKENS = 32, 512
"""Of Z-Image: what its captions are padded to, and where its pipeline cuts them."""


class Chunked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="chunked"):
    """A `tokenizers` file, and the chunks that a text becomes: the runtime adds bos, eos and padding to each.

    max_tokens: of a chunk, bos and eos included; the tokens axis is a multiple of it. max_chunks: the most that a
    prompt may have; what is longer is dropped.
    """

    file: str
    max_tokens: Annotated[int, msgspec.Meta(ge=3)]
    max_chunks: Annotated[int, msgspec.Meta(ge=1)]
    bos_id: TokenId
    eos_id: TokenId
    pad_id: TokenId

    @property
    def lengths(self) -> range:
        """The numbers of tokens that a prompt can have, padding included."""
        return range(self.max_tokens, self.max_tokens * self.max_chunks + 1, self.max_tokens)

    @property
    def usual(self) -> tuple[int, int]:
        """The least and the greatest length that a profile covers which names none: one chunk, as most prompts have."""
        return self.max_tokens, self.max_tokens

    def tuned(self, low: int, high: int) -> int:  # noqa: ARG002
        """The length that a profile of these lengths is tuned for: most prompts have one chunk."""
        return low

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids that the file must know, by field."""
        return {"bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}


class Templated(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="templated"
):
    """A `tokenizers` file, and the template that a text stands in: prefix + text + suffix is tokenized as one text.

    Texts, not ids: where a prompt begins with a newline, a tokenizer may join it to the prefix's last one. Ids beyond
    max_tokens are cut off, the suffix's first; what is left is padded with pad_id to the next multiple.
    """

    file: str
    prefix: str
    suffix: str
    pad_id: TokenId
    multiple: Annotated[int, msgspec.Meta(ge=1)] = MULTIPLE
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = MAX_TOKENS

    @property
    def lengths(self) -> range:
        """The numbers of tokens that a prompt can have, padding included."""
        return range(self.multiple, self.max_tokens + 1, self.multiple)

    @property
    def usual(self) -> tuple[int, int]:
        """The least and the greatest length that a profile covers which names none: all, as captions have any."""
        return self.multiple, self.max_tokens

    def tuned(self, low: int, high: int) -> int:
        """The length that a profile of these lengths is tuned for: the middle one."""
        return (low + high) // 2 // self.multiple * self.multiple

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids that the file must know, by field."""
        return {"pad_id": self.pad_id}


Tokenizer = Chunked | Templated
"""Told apart by `kind` in bundle.json."""
