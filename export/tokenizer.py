"""A source tokenizer → one tokenizer.json of text alone: the runtime adds bos, eos and padding, chunk by chunk.

Does not know how prompts are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from engine.errors import ExportMismatch, SourceError

SAMPLES = ("a cat", "A Cat!  left of 2 pizzas, on white", "naïve café 北京 🙂", "", "word " * 200)


def export_tokenizer(folder: Path, path: Path, max_tokens: int) -> dict[str, int]:
    """Write tokenizer.json, and compare it with the source on sample texts; the ids of bos, eos and padding.

    Raises SourceError where the folder has no tokenizer, ExportMismatch where the ids differ.
    """
    try:
        source: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(
            str(folder), actual=f"{type(error).__name__}: {error}", allowed="a saved CLIPTokenizer",
            remedy="Save the pipeline again with diffusers' save_pretrained().",
        ) from error  # fmt: skip
    target = Tokenizer.from_str(source.backend_tokenizer.to_str())
    target.no_truncation()
    target.no_padding()
    target.save(str(path))
    reread = Tokenizer.from_file(str(path))
    ids = {"bos_id": source.bos_token_id, "eos_id": source.eos_token_id, "pad_id": source.pad_token_id}
    for text in SAMPLES:
        expected = source(text, padding="max_length", max_length=max_tokens, truncation=True).input_ids
        if (found := one_chunk(reread, text, max_tokens, **ids)) != expected:
            raise ExportMismatch(
                f"tokenizer.json, text {text[:20]!r}", actual=str(found[:12]), allowed=str(expected[:12]),
                remedy="Report it: the source tokenizer has a rule that is not exported.",
            )  # fmt: skip
    return ids


def one_chunk(tokenizer: Tokenizer, text: str, max_tokens: int, *, bos_id: int, eos_id: int, pad_id: int) -> list[int]:
    """A text's ids as one chunk, cut where it is longer."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: max_tokens - 2]
    return [bos_id, *ids, eos_id, *[pad_id] * (max_tokens - 2 - len(ids))]
