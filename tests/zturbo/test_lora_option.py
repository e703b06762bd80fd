"""What `--lora` says: a file, and behind the last colon a weight where that is a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from zturbo.lora_option import read_loras


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0), ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\a.safetensors:.5", "C:\\a.safetensors", 0.5), (":3", ":3", 1.0), ("a:", "a:", 1.0),
    ],
)  # fmt: skip
def test_files_and_weights(text, file, weight):
    assert read_loras([text]) == [(Path(file), weight)]


def test_none():
    assert read_loras(None) == []
