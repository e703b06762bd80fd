"""A tokenizer of Qwen's kind for random models: a token is a byte, and a text stands in the form of Qwen3's chats.

A caption has more tokens by it than by Qwen's own, whose words are not at hand. Knows no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message.role }}\n{{ message.content }}" + STOP + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)  # fmt: skip


def save_byte_tokenizer(folder: Path) -> None:
    """Write it as transformers does."""
    from transformers import Qwen2Tokenizer

    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    settings: dict[str, Any] = {"eos_token": STOP, "pad_token": END, "model_max_length": 131072}
    made: Any = Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=TEMPLATE, **settings)
    made.add_tokens([START, STOP], special_tokens=True)
    made.save_pretrained(folder)
