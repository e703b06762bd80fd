"""What bundle.json says of prompts: which tokenizer, and what chunks its tokens fill. Reads no tokenizer."""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Tokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
