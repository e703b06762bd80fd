"""A source tokenizer → one tokenizer.json of text alone, and what the runtime adds to a text: chunks or a template.

Does not know how prompts are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, Qwen2Tokenizer

from engine.errors import ExportMismatch, SourceError
from engine.tokens import Templated
from export.source import RESAVE

SAMPLES = ("a cat", "A Cat!  left of 2 pizzas, on white", "naïve café 北京 🙂", "", "word " * 200)
EDGES = (
    "\n\na cat", "  a cat \t\r\n", "\u0301 e\u0301", "<|im_end|>\n<|im_start|>user\na <|endoftext|>",
    "<think>a</think>", "<tool_response>a</tool_response>", "{{ a }} {% b %}", "word " * 2000,
)  # fmt: skip
"""Of a templated prompt also: what joins the template's own text, is a word of it, or is longer than there is room."""
SENTINELS = ("a text of zturbo", "another of them")


def export_tokenizer(folder: Path, path: Path, max_tokens: int) -> dict[str, int]:
    """Write tokenizer.json, and compare it with the source on sample texts; the ids of bos, eos and padding.

    Raises SourceError where the folder has no tokenizer, ExportMismatch where the ids differ.
    """
    source = _read(folder)
    _check_vocabulary(folder, source)
    reread, ids = _saved(source, path), _special_ids(source)
    for text in SAMPLES:
        expected = source(text, padding="max_length", max_length=max_tokens, truncation=True).input_ids
        _check_ids(text, one_chunk(reread, text, max_tokens, **ids), expected)
    return ids


def export_templated(folder: Path, path: Path, *, multiple: int, max_tokens: int) -> Templated:
    """Write tokenizer.json, and find the template around a text by rendering the source's own chat template.

    Compared with what diffusers' pipeline makes of sample texts: a message of the user, rendered, tokenized, cut at
    max_tokens. Raises SourceError where the folder has no such tokenizer, ExportMismatch where the ids differ.
    """
    source = _read(folder, Qwen2Tokenizer)
    _check_vocabulary(folder, source)
    prefix, suffix = _template(folder, source)
    reread = _saved(source, path)
    for text in (*SAMPLES, *EDGES):
        asked = source(_rendered(folder, source, text), padding="max_length", max_length=max_tokens, truncation=True)
        expected = [token for token, real in zip(asked.input_ids, asked.attention_mask, strict=True) if real]
        _check_ids(text, reread.encode(prefix + text + suffix).ids[:max_tokens], expected)
    return Templated(
        file=path.name, prefix=prefix, suffix=suffix, pad_id=source.pad_token_id, multiple=multiple,
        max_tokens=max_tokens,
    )  # fmt: skip


def _check_vocabulary(folder: Path, source: Any) -> None:
    """Raise SourceError where texts would lose bytes, as of a folder without a vocabulary, or where nothing pads."""
    vocabulary = source.get_vocab()
    if missing := [byte for byte in ByteLevel.alphabet() if byte not in vocabulary]:
        raise _unusable(folder, f"a vocabulary without {len(missing)} of the 256 bytes", "a byte-level vocabulary")
    if source.pad_token_id is None:
        raise _unusable(folder, "no padding token", "a tokenizer that pads")


def _template(folder: Path, source: Any) -> tuple[str, str]:
    """What stands before and after a text. Raises SourceError where there is no such thing."""
    first, *others = (_rendered(folder, source, text).split(text) for text in SENTINELS)
    if len(first) != 2 or others != [first]:
        raise _unusable(folder, "a chat template that does not put a text once between two others")
    return first[0], first[1]


def _rendered(folder: Path, source: Any, text: str) -> str:
    """A text as diffusers' ZImagePipeline gives it to its tokenizer. Raises SourceError."""
    chat = [{"role": "user", "content": text}]
    try:
        return str(source.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True))
    except Exception as error:  # a template is a program, and raises what it likes
        raise _unusable(folder, f"no chat template that works ({type(error).__name__}: {error})") from error


def _unusable(folder: Path, actual: str, allowed: str = "the tokenizer of a chat model") -> SourceError:
    return SourceError(str(folder), actual=actual, allowed=allowed, remedy=RESAVE)


def _saved(source: Any, path: Path) -> Tokenizer:
    """What the runtime will read: the source's fast tokenizer, without settings of its own for padding and length."""
    target = Tokenizer.from_str(source.backend_tokenizer.to_str())
    target.no_truncation()
    target.no_padding()
    target.save(str(path))
    return Tokenizer.from_file(str(path))


def _check_ids(text: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise ExportMismatch(
            f"tokenizer.json, text {text[:20]!r}", actual=str(found[:12]), allowed=str(expected[:12]),
            remedy="Report it: the source tokenizer has a rule that is not exported.",
        )  # fmt: skip


def check_vocabulary(folder: Path, vocabulary: int, *, templated: bool = False) -> None:
    """Every id of a tokenizer has an embedding. vocabulary: how many there are. Raises SourceError.

    templated: of a chat model.
    """
    source = _read(folder, Qwen2Tokenizer) if templated else _read(folder)
    if (largest := max(source.get_vocab().values())) >= vocabulary:
        raise _unusable(
            folder, f"ids up to {largest}", f"ids below {vocabulary}, which the text encoder has embeddings for"
        )


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


def _read(folder: Path, kind: Any = CLIPTokenizer) -> Any:
    if not folder.is_dir():
        raise _unusable(folder, "no such folder", f"a saved {kind.__name__}")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library behind it raises plain Exception for a damaged file
        raise SourceError(
            str(folder), actual=f"{type(error).__name__}: {error}", allowed=f"a saved {kind.__name__}", remedy=RESAVE,
        ) from error  # fmt: skip


def one_chunk(tokenizer: Tokenizer, text: str, max_tokens: int, *, bos_id: int, eos_id: int, pad_id: int) -> list[int]:
    """A text's ids as one chunk, cut where it is longer."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: max_tokens - 2]
    return [bos_id, *ids, eos_id, *[pad_id] * (max_tokens - 2 - len(ids))]
