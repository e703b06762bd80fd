"""A source tokenizer → one tokenizer.json that pads and truncates by itself. Does not know how prompts are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from engine.errors import ExportMismatch, SourceError

SAMPLES = ("a cat", "A Cat!  left of 2 pizzas, on white", "naïve café 北京 🙂", "", "word " * 200)


def export_tokenizer(folder: Path, path: Path, max_tokens: int) -> None:
    """Write tokenizer.json, and compare it with the source on sample texts.

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
    target.enable_truncation(max_tokens)
    target.enable_padding(length=max_tokens, pad_id=source.pad_token_id, pad_token=source.pad_token)
    target.save(str(path))
    reread = Tokenizer.from_file(str(path))
    for text in SAMPLES:
        expected = source(text, padding="max_length", max_length=max_tokens, truncation=True).input_ids
        if reread.encode(text).ids != expected:
            raise ExportMismatch(
                f"tokenizer.json, text {text[:20]!r}", actual=str(reread.encode(text).ids[:12]),
                allowed=str(expected[:12]), remedy="Report it: the source tokenizer has a rule that is not exported.",
            )  # fmt: skip
