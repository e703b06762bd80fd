"""A text in its template → the ids that a language model reads, as it was tokenized whole. Knows no batch."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from engine.tokens import Templated


@dataclass(frozen=True, slots=True)
class Framed:
    """A text as it is read. ids: template included, not padded. dropped: tokens of the text that found no room."""

    ids: tuple[int, ...]
    dropped: int

    def length(self, multiple: int) -> int:
        """The ids' number, padded: the next multiple."""
        return max(-(-len(self.ids) // multiple), 1) * multiple


def framed(text: str, tokenizer: Tokenizer, entry: Templated) -> Framed:
    """Tokenize prefix + text + suffix as one, and cut what is beyond max_tokens.

    A special token's own word in the text is that token, as it is to the tokenizer of the model's own pipeline.
    """
    encoding = tokenizer.encode(entry.prefix + text + entry.suffix)
    end = len(entry.prefix) + len(text)
    beyond = encoding.offsets[entry.max_tokens :]
    return Framed(tuple(encoding.ids[: entry.max_tokens]), sum(stop <= end for _, stop in beyond))
