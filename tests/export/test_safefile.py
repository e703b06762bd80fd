"""A model's .safetensors file: what is sound passes as the library reads it, what is not is named."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import SourceError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from engine.safetensors_header import MAX_HEADER_BYTES  # noqa: E402
from export.safefile import check_safetensors  # noqa: E402

TENSORS = {
    "a": torch.zeros(3, 4), "b": torch.ones((), dtype=torch.float16), "c": torch.zeros(0, 2, dtype=torch.int64),
    "d": torch.zeros(5, dtype=torch.bfloat16), "e": torch.zeros(2, dtype=torch.bool),
    "f": torch.zeros(4, dtype=torch.float8_e4m3fn),
}  # fmt: skip


def test_what_the_library_saves_passes(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"note": "ü"})
    file = check_safetensors(path)
    assert {name: entry.shape for name, entry in file.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert (file.metadata, file.elements) == ({"note": "ü"}, 12 + 1 + 0 + 5 + 2 + 4)
    assert load_file(path).keys() == file.tensors.keys()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"PK\x03\x04" + bytes(60), "a zip archive"), (b"1234567", "no header"),
        (b"\x02" + bytes(7) + b"{}", "no tensor"),
        (b"\x10" + bytes(7) + b'{"x": 1, "x": 2}', "'x' twice"),
    ],
)  # fmt: skip
def test_a_refusal_is_of_the_model_and_says_what_mends_it(tmp_path: Path, raw, words):
    """What is refused is in tests/engine/test_safetensors_header.py."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=words) as caught:
        check_safetensors(path)
    assert caught.value.subject == str(path)
    assert "safe_serialization=True" in caught.value.remedy


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path):
    """Whose two first bytes it has. The library pads headers with spaces, and reads this one too."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(3)}, path)
    raw = path.read_bytes()
    header, data = raw[8:-12], raw[-12:]
    path.write_bytes((640).to_bytes(8, "little") + header.ljust(640) + data)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert check_safetensors(path).tensors.keys() == load_file(path).keys() == {"x"}


def test_a_folder_a_pipe_and_nothing(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "none"):
        with pytest.raises(SourceError, match=r"no regular file|unreadable"):
            check_safetensors(tmp_path / name)


def test_a_header_that_says_it_is_huge_is_not_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2**34)  # no blocks are written
    tracemalloc.start()
    with pytest.raises(SourceError, match="header of"):
        check_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
