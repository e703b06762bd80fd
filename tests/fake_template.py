"""tests/fake_bundle.py's bundle with prompts in a template, as Z-Image's has them; no torch, no transformers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from engine.binding import Precision
from engine.bundle import Bundle, load_bundle
from tests.fake_bundle import edit, write_bundle

START, STOP, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
PREFIX, SUFFIX = f"{START}user\n", f"{STOP}\n{START}assistant\n"
BEFORE, BEHIND = 1 + 5, 2 + 1 + 10
AROUND = BEFORE + BEHIND
"""Tokens of the template: each character is one, and so is each special token's word."""
PAD_ID = 259


def chat_tokenizer() -> Tokenizer:
    """One token per byte, but two newlines are one token; special tokens are found in any text."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    made = Tokenizer(models.BPE({word: k for k, word in enumerate(words)}, [("Ċ", "Ċ")]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens([AddedToken(word, special=True) for word in (START, STOP, PAD)])
    assert made.token_to_id(PAD) == PAD_ID
    return made


def write_templated(folder: Path, precisions: tuple[Precision, ...] = ("fp32",), *, masked: bool = False) -> Bundle:
    """Write the bundle; its guidance is pos + g·(pos − neg), 0 by default."""
    write_bundle(folder, precisions)
    chat_tokenizer().save(str(folder / "tokenizer.json"))
    entry = {"kind": "templated", "file": "tokenizer.json", "prefix": PREFIX, "suffix": SUFFIX, "pad_id": PAD_ID}
    edit(folder, lambda body: body.update(tokenizer=entry, masked=masked, guidance_offset=1.0, family="zimage"))
    edit(folder, lambda body: body["defaults"].update(guidance_scale=0.0))
    return load_bundle(folder)
