"""A Qwen2 tokenizer trained here on a few sentences: byte-level BPE, Qwen's special tokens and its form of a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = ("<think>", "</think>", "<tool_response>", "</tool_response>")
"""Tokens that are added and not special."""
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)
"""The shape of Qwen3's: a user's turn, and the assistant's begun."""
PREFIX, SUFFIX = f"{START}user\n", f"{STOP}\n{START}assistant\n"
SENTENCES = (
    "a photo of a cat on a white sofa", "two cats and a dog, left of the tree", "user assistant system\n\n",
    "an astronaut riding a horse on the moon, oil painting", "the city of light at night, rain, 35 mm", "café",
)  # fmt: skip


def qwen_tokenizer(**changes: Any) -> Qwen2Tokenizer:
    """A tokenizer of some 400 ids; changes: of its settings, such as chat_template."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    vocabulary = trained.get_vocab(with_added_tokens=False)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    settings = {"chat_template": TEMPLATE, "model_max_length": 131072, "eos_token": STOP, **changes}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, pad_token=END, **settings)
    made.add_tokens([AddedToken(START, special=True), AddedToken(STOP, special=True)])
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    return made


def save_qwen_tokenizer(folder: Path, **changes: Any) -> Qwen2Tokenizer:
    """Save it as diffusers does, and return it."""
    made = qwen_tokenizer(**changes)
    made.save_pretrained(folder)
    return made
