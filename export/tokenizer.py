"""A source tokenizer → one tokenizer.json of text alone: the runtime adds bos, eos and padding, chunk by chunk.

Does not know how prompts are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from engine.errors import ExportMismatch, SourceError
from export.source import RESAVE

SAMPLES = ("a cat", "A Cat!  left of 2 pizzas, on white", "naïve café 北京 🙂", "", "word " * 200)


def export_tokenizer(folder: Path, path: Path, max_tokens: int) -> dict[str, int]:
    """Write tokenizer.json, and compare it with the source on sample texts; the ids of bos, eos and padding.

    Raises SourceError where the folder has no tokenizer, ExportMismatch where the ids differ.
    """
    source = _read(folder)
    target = Tokenizer.from_str(source.backend_tokenizer.to_str())
    target.no_truncation()
    target.no_padding()
    target.save(str(path))
    reread = Tokenizer.from_file(str(path))
    ids = _special_ids(source)
    for text in SAMPLES:
        expected = source(text, padding="max_length", max_length=max_tokens, truncation=True).input_ids
        if (found := one_chunk(reread, text, max_tokens, **ids)) != expected:
            raise ExportMismatch(
                f"tokenizer.json, text {text[:20]!r}", actual=str(found[:12]), allowed=str(expected[:12]),
                remedy="Report it: the source tokenizer has a rule that is not exported.",
            )  # fmt: skip
    return ids


def special_ids(folder: Path) -> dict[str, int]:
    """The ids of bos, eos and padding. Raises SourceError where the folder has no tokenizer."""
    return _special_ids(_read(folder))


def check_same(folder: Path, other: Path) -> None:
    """Two tokenizers give a text the same ids, their padding apart. Raises SourceError.

    Texts with the padding's own word are left out: SDXL's second tokenizer has "!" for padding, and as a special token
    it is cut out of words. What the model was trained with, and the web UIs, read it as the first tokenizer does.
    """
    first, second = _read(folder), _read(other)
    texts = [text for text in SAMPLES if second.pad_token not in text]
    for text in texts:
        found, expected = ([*one(text, add_special_tokens=False).input_ids, *_ends(one)] for one in (second, first))
        if found != expected:
            raise SourceError(
                str(other), actual=f"other ids for {text[:20]!r} than of {folder.name}", allowed="one vocabulary",
                remedy="Export a pipeline whose tokenizers differ in their padding alone.",
            )  # fmt: skip


def _ends(tokenizer: Any) -> list[int]:
    return [tokenizer.bos_token_id, tokenizer.eos_token_id]


def _special_ids(source: Any) -> dict[str, int]:
    return {"bos_id": source.bos_token_id, "eos_id": source.eos_token_id, "pad_id": source.pad_token_id}


def _read(folder: Path) -> Any:
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library behind it raises plain Exception for a damaged file
        raise SourceError(
            str(folder), actual=f"{type(error).__name__}: {error}", allowed="a saved CLIPTokenizer",
            remedy=RESAVE,
        ) from error  # fmt: skip


def one_chunk(tokenizer: Tokenizer, text: str, max_tokens: int, *, bos_id: int, eos_id: int, pad_id: int) -> list[int]:
    """A text's ids as one chunk, cut where it is longer."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: max_tokens - 2]
    return [bos_id, *ids, eos_id, *[pad_id] * (max_tokens - 2 - len(ids))]
