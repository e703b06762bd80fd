"""The one judge of .safetensors headers: what is not sound is refused with what it is and what it may be."""

from __future__ import annotations

import io
import json
import pickle
import re
import tracemalloc
from typing import Any

import pytest

from engine.errors import BundleError
from engine.safetensors_header import DTYPE_BITS, MAX_HEADER_BYTES, MAX_NAMES, Header, read_header


def written(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def judged(raw: bytes, dtypes: Any = DTYPE_BITS) -> Header:
    """By an error that no reader has, so that what is raised is what was handed in."""
    return read_header(
        io.BytesIO(raw), len(raw),
        lambda actual, allowed: BundleError("some file", actual=actual, allowed=allowed, remedy="Mend it."), dtypes,
    )  # fmt: skip


def refused(raw: bytes, words: str, allowed: str, dtypes: Any = DTYPE_BITS) -> None:
    with pytest.raises(BundleError) as caught:
        judged(raw, dtypes)
    error = caught.value
    assert (error.subject, error.remedy) == ("some file", "Mend it.")
    assert re.search(words, error.actual), error
    assert re.search(allowed, error.allowed), error


def one(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def two(first: tuple[int, int], second: tuple[int, int]) -> dict[str, object]:
    return one("U8", [first[1] - first[0]], first) | {"y": one("U8", [second[1] - second[0]], second)["x"]}


def test_what_is_sound_passes():
    header = {"__metadata__": {"note": "ü"}, **two((2, 5), (0, 2)), "z": one("F8_E5M2", [0, 3], (2, 2))["x"]}
    found = judged(written(header, b"12345"))
    assert {name: (entry.shape, entry.elements) for name, entry in found.tensors.items()} == {
        "x": ((3,), 3), "y": ((2,), 2), "z": ((0, 3), 0),
    }  # fmt: skip
    assert found.metadata == {"note": "ü"}
    assert found.data_begin == len(written(header))


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_each_dtype_has_its_size(dtype):
    size = 3 * DTYPE_BITS[dtype] // 8
    assert judged(written(one(dtype, [3], (0, size)), bytes(size))).tensors["x"].dtype == dtype
    refused(written(one(dtype, [3], (0, size + 1)), bytes(size + 1)), f"'x' in {size + 1} bytes", f"{size}, as {dtype}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"x": %s, "y": %s, "x": %s}', "'x' twice"),
        (b'{"x": %s, "y": %s, "\\u0078": %s}', "'x' twice"),
        (b'{"__metadata__": {"a": "b"}, "x": %s, "y": %s, "y": %s}', "'y' twice"),
    ],
)
def test_a_name_that_is_there_twice(text, words):
    """At one place each, so that nothing else is wrong: a dict would have the last of them in silence."""
    x = b'{"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'
    other = b'{"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4]}'
    empty = b'{"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}'
    values = (x, empty, other) if b'"x": %s}' in text or b"0078" in text else (x, empty, empty)
    refused(written(text % values, b"1234"), words, "each name once")


def test_other_names_that_are_there_twice():
    rest = b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    for name in (b"__metadata__", b"x"):
        text = b'{"%s": {}, "%s": {}, ' % (name, name)
        refused(written(text + rest, b"1234"), f"'{name.decode()}' twice", "each name once")
    refused(written(b'{"__metadata__": {"a": "1", "a": "2"}, ' + rest, b"1234"), "metadata that has 'a' twice", "once")
    shapes = rest.replace(b'"shape": [1]', b'"shape": [7], "shape": [1]')
    refused(written(b"{" + shapes, b"1234"), "tensor 'x' with an entry that has 'shape' twice", "once")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 640 + 65536])
def test_a_length_that_begins_like_a_pickle_is_a_length(length):
    """0x80 and a protocol are a pickle's first bytes and, little-endian, these lengths."""
    text = json.dumps(one()).encode()
    assert judged(written(text + b" " * (length - len(text)), b"1234")).tensors.keys() == {"x"}
    raw = written(b"[" * length)
    assert raw[:1] == b"\x80"
    assert raw[1] in (2, 3, 4, 5)
    refused(raw, "a pickle", "JSON object")


class Evil:
    """What unpickling it would do."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        *((pickle.dumps(Evil(), protocol) + bytes(700), "a pickle") for protocol in (2, 3, 4, 5)),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x93NUMPY\x01\x00" + bytes(60), "numpy"),
        (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"", "no header in a file of 0"),
        (b"1234567", "no header in a file of 7"),
        (bytes(8), "header of 0 bytes"),
        (b"\xff" * 64, "header of 1844"),
        ((8).to_bytes(8, "little") + b"[1, 2,3]", "begins with"),
        ((9).to_bytes(8, "little") + b"{}      ", "header of 9 bytes in a file of 16"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}" + b" " * MAX_HEADER_BYTES, "header of 16777217"),
    ],
)
def test_what_is_no_such_file_at_all(raw, words):
    refused(raw, words, f"a JSON object of at most {MAX_HEADER_BYTES} bytes")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"x": {', "cannot be read"), (b"{" * 1000, "cannot be read"), (b'{"a":' * 100_000, "cannot be read"),
        (b'{"x": \xff}', "cannot be read"), (b'{"x": NaN}', "cannot be read"), (b'{"\xff": 1}', "cannot be read"),
        (b'{"x": 1} {}', "cannot be read"), (b'{"\\ud800": 1}', "cannot be read"),
        (b"{" + b",".join(b'"%d":0' % k for k in range(MAX_NAMES + 1)) + b"}", f"more than {MAX_NAMES} names"),
    ],
)  # fmt: skip
def test_a_header_that_is_no_object(header, words):
    refused(written(header), words, f"a JSON object of at most {MAX_NAMES} names")


@pytest.mark.parametrize(
    "entry",
    [
        7, None, [], {}, {"dtype": "F32", "shape": [1]}, one(code="x")["x"], one(dtype=None)["x"],
        one(shape=[1.5])["x"], one(shape="1")["x"], one(shape=[True])["x"], one(offsets=(0, 4, 8))["x"],
        one(offsets=[0])["x"], one(offsets="0-4")["x"], one(offsets=[0.5, 4])["x"],
    ],
)  # fmt: skip
def test_an_entry_of_another_form(entry):
    refused(written({"x": entry}, b"1234"), "tensor 'x' with an entry that cannot be read", ".")


@pytest.mark.parametrize("notes", [[], 1, "x", {"a": 1}, {"a": {}}, {"a": None}])
def test_metadata_that_is_not_text_by_name(notes):
    refused(written({"__metadata__": notes, **one()}, b"1234"), "metadata that cannot be read", ".")


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"a": "b"}}])
def test_no_tensor(header):
    refused(written(header), "no tensor", "at least one")


@pytest.mark.parametrize("dtype", ["F33", "", "f32", "C64", "F4"])
def test_dtypes_that_there_are_not(dtype):
    refused(written(one(dtype), b"1234"), f"'x' of dtype '{dtype}'", "F64, F32, F16")


def test_a_dtype_that_this_reader_does_not_take():
    raw = written(one("I32"), b"1234")
    assert judged(raw, ("F32", "I32")).tensors["x"].elements == 1
    refused(raw, "'x' of dtype 'I32'", "^F32, F16$", ("F32", "F16"))


@pytest.mark.parametrize("shape", [[-1, -1], [2**48, 0], [2**62, 4], [-(2**63)]])
def test_shapes_that_there_are_not(shape):
    refused(written(one(shape=shape), b"1234"), "'x' of shape", "sizes of 0 to")


def test_more_axes_than_any_tensor_has():
    assert judged(written(one(shape=[1] * 8), b"1234")).tensors["x"].elements == 1
    refused(written(one(shape=[1] * 9), b"1234"), "'x' of 9 axes", "at most 8")


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([2], (0, 4)), ([1], (0, 3)), ([1], (4, 0)), ([0], (0, 4)), ([2**40, 2**40], (0, 4)), ([1], (0, 2**62))],
)
def test_sizes_that_are_not_those_of_shape_and_dtype(shape, offsets):
    refused(written(one(shape=shape, offsets=offsets), b"1234"), r"tensor 'x' in -?\d+ bytes", "as F32 of shape")


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (two((0, 2), (3, 5)), b"12345", "a gap: tensor 'y' at byte 3, behind 2 bytes"),
        (two((0, 3), (2, 5)), b"12345", "an overlap: tensor 'y' at byte 2, behind 3 bytes"),
        (two((0, 3), (0, 3)), b"123", "an overlap: tensor 'y' at byte 0"),
        (two((0, 5), (1, 2)), b"12345", "an overlap: tensor 'y' at byte 1"),
        (two((3, 5), (0, 2)), b"12345", "a gap: tensor 'x' at byte 3"),
        (one(offsets=(4, 8)), b"12345678", "a gap: tensor 'x' at byte 4, behind 0"),
        (one(offsets=(-4, 0)), b"1234", "an overlap: tensor 'x' at byte -4"),
        (one(), b"123", "3 bytes of tensors where the header has 4"),
        (one(), b"12345", "5 bytes of tensors where the header has 4"),
        (one(), b"", "0 bytes of tensors where the header has 4"),
    ],
)
def test_tensors_that_do_not_lie_end_to_end(header, data, words):
    refused(written(header, data), words, "end to end")


@pytest.mark.parametrize(
    "entry", [b'"%07d":{}', b'"%07d":0', b'"%07d":[[[]]]', b'"same":%07d', b'"%07d":{"a":{},"a":{}}']
)
def test_the_largest_header_of_the_smallest_entries_stays_bounded(entry):
    """A header of 16 MiB made of what costs most by the byte: at most 25 times its length, and no long wait."""
    count = MAX_HEADER_BYTES // (len(entry % 0) + 1) - 1
    raw = written(b"{" + b",".join(entry % k for k in range(count)) + b"}")
    tracemalloc.start()
    with pytest.raises(BundleError):
        judged(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * MAX_HEADER_BYTES


@pytest.mark.parametrize("value", [b"0,", b"[],", b"{},", b'"",', b"1e5,"])
def test_one_entry_as_large_as_a_header_stays_bounded(value):
    raw = b'{"x": {"dtype": "F32", "data_offsets": [0, 4], "shape": ['
    raw += value * ((MAX_HEADER_BYTES - len(raw) - 8) // len(value)) + b"0]}}"
    raw = written(raw)
    tracemalloc.start()
    with pytest.raises(BundleError, match="'x'"):
        judged(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * MAX_HEADER_BYTES
