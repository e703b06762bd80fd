"""The header check of .safetensors files: what is sound passes as the library reads it, what is not is named."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import SourceError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from export.safefile import MAX_HEADER_BYTES, check_safetensors  # noqa: E402

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


def written(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def one(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({}, b"", "no tensor"),
        ({"__metadata__": {"a": "b"}}, b"", "no tensor"),
        ({"__metadata__": {"a": 1}, **one()}, b"1234", "cannot be read"),
        (one(), b"123", "3 bytes of tensors"),
        (one(), b"12345", "5 bytes of tensors"),
        (one(shape=[2]), b"1234", "shape"),
        (one(shape=[-1, -1]), b"1234", "shape"),
        (one(shape=[2**48, 0], offsets=(0, 0)), b"", "shape"),
        (one(shape=[1] * 9), b"1234", "shape"),
        (one(shape=[1.0]), b"1234", "cannot be read"),
        (one(dtype="F33"), b"1234", "F33"),
        (one(dtype=None), b"1234", "cannot be read"),
        (one(offsets=(4, 8)), b"12345678", "byte 0"),
        (one(offsets=(4, 0)), b"1234", "bytes"),
        (one(offsets=(0, 4, 8)), b"1234", "cannot be read"),
        (one(offsets=(-4, 0)), b"1234", "byte 0"),
        (one(code="x"), b"1234", "cannot be read"),
        ({**one(), "y": one()["x"]}, b"1234", "byte 4"),
        ([], b"", "begins with"),
        (b"{" * 1000, b"", "cannot be read"),
        (b'{"a":' * 100_000, b"", "cannot be read"),
        (b'{"x": \xff}', b"", "cannot be read"),
        (b'{"x": NaN}', b"", "cannot be read"),
    ],
)
def test_what_is_not_sound_is_named(tmp_path: Path, header, data, words):
    with pytest.raises(SourceError, match=words):
        check_safetensors(written(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (bytes(8), "header of 0"),
        (b"\xff" * 64, "header of 1844"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00." + bytes(60), "pickle"),
        (b"\x80\x01\x00\x00\x00\x00\x00\x00" + bytes(600), "begins with"),
        (b"\x93NUMPY\x01\x00" + bytes(60), "numpy"),
    ],
)
def test_what_is_no_such_file_at_all(tmp_path: Path, raw, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=words):
        check_safetensors(path)


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


@pytest.mark.parametrize("entry", [b'"%07d":{}', b'"%07d":0', b'"%07d":[[[]]]'])
def test_the_largest_header_of_the_smallest_entries_stays_bounded(tmp_path: Path, entry):
    """A header of 16 MiB made of what costs most by the byte: at most 25 times its length, and no long wait."""
    count = MAX_HEADER_BYTES // (len(entry % 0) + 1) - 1
    path = written(tmp_path / "x.safetensors", b"{" + b",".join(entry % k for k in range(count)) + b"}")
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"cannot be read|tensors"):
        check_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * MAX_HEADER_BYTES
