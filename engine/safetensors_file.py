"""A .safetensors file: its header, checked before a byte of it is believed, and its tensors as float32.

One read of the file: what is hashed is what is parsed. Needs numpy alone, and takes bfloat16, which numpy has not.
Does not know what the tensors are of.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.binding import Float32Array
from engine.errors import LoraInvalid, shown

MAX_FILE_BYTES = 2 << 30
"""SDXL's LoRA of rank 256 has 1.7 GB in fp16."""
MAX_HEADER_BYTES = 16 << 20
"""About 100,000 tensors."""
MAX_AXES = 8
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
METADATA = "__metadata__"
DISGUISES = {b"PK\x03\x04": "a zip archive, as torch.save writes them", b"\x80": "a pickle"}
REMEDY = "Pass a LoRA that was saved as .safetensors, or save it again."


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in the file's data, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file in memory. entries: by name; metadata: texts by name. sha256: of the whole file.

    Raises LoraInvalid where it is no such file, or none that can be believed.
    """

    def __init__(self, path: Path) -> None:
        self.path, raw = path, _read(path)
        self.sha256 = hashlib.sha256(raw).hexdigest()
        view = memoryview(raw)
        header, self._data = self._parted(view)
        self.metadata = self._metadata(header.pop(METADATA, {}))
        self.entries = {name: self._entry(name, value) for name, value in header.items()}
        self._check_layout()

    def array(self, name: str) -> Float32Array:
        """A tensor as float32, a copy."""
        entry = self.entries[name]
        flat = np.frombuffer(self._data[entry.begin : entry.end], NUMPY[entry.dtype])
        if entry.dtype == "BF16":  # the upper half of a float32
            flat = (flat.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):  # of float64: infinite, as its reader will see
            return flat.astype(np.float32).reshape(entry.shape)

    def refused(self, actual: str, allowed: str = "a .safetensors file that is whole") -> LoraInvalid:
        """The error of this file."""
        return LoraInvalid(str(self.path), actual=actual, allowed=allowed, remedy=REMEDY)

    def _parted(self, view: memoryview) -> tuple[dict[str, Any], memoryview]:
        """The header and the data behind it."""
        for begin, what in DISGUISES.items():
            if view[: len(begin)] == begin and _length(view) > MAX_HEADER_BYTES:
                raise self.refused(f"{what}, which could run code", "a .safetensors file")
        length = _length(view)
        if not 2 <= length <= min(MAX_HEADER_BYTES, len(view) - 8):
            raise self.refused(f"a header of {length} bytes in a file of {len(view)}")
        try:
            header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError) as error:
            raise self.refused(f"a header that cannot be read ({str(error)[:100]})") from error
        if not isinstance(header, dict):
            raise self.refused("a header that is no JSON object")
        return header, view[8 + length :]

    def _metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self.refused("metadata that is not text by name")
        return value

    def _entry(self, name: str, value: Any) -> Entry:
        """A tensor's place, once its size is that of its shape. Python's integers do not overflow."""
        subject = f"tensor {shown(name)}"
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self.refused(f"{subject} without dtype, shape and data_offsets alone")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in NUMPY:
            raise self.refused(f"{subject} of type {shown(dtype)}", ", ".join(NUMPY))
        if not _is_sizes(shape) or len(shape) > MAX_AXES or not _is_sizes(offsets) or len(offsets) != 2:
            raise self.refused(f"{subject} of shape {shown(shape)} at {shown(offsets)}")
        size, (begin, end) = math.prod(shape) * np.dtype(NUMPY[dtype]).itemsize, offsets
        if not (begin <= end <= len(self._data) and end - begin == size):
            raise self.refused(f"{subject} of {size} bytes at {shown(offsets)} of {len(self._data)}")
        return Entry(dtype, tuple(shape), begin, end)

    def _check_layout(self) -> None:
        """Every byte of the data belongs to one tensor, as the format demands."""
        at = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != at:
                raise self.refused(f"tensor {shown(name)} at {entry.begin}, behind {at} bytes of others")
            at = entry.end
        if at != len(self._data):
            raise self.refused(f"{len(self._data)} bytes of data of which {at} are tensors")


def _read(path: Path) -> bytes:
    """All bytes of a regular file."""
    try:
        if not path.is_file():
            raise LoraInvalid(str(path), actual="no such file", allowed="a .safetensors file", remedy=REMEDY)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # a read makes room for all that it is asked for
            raw = stream.read(min(size, MAX_FILE_BYTES) + 1)
    except (OSError, ValueError) as error:  # ValueError: no file system takes the name
        raise LoraInvalid(
            str(path), actual=f"unreadable ({error})", allowed="a .safetensors file", remedy=REMEDY
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise LoraInvalid(
            str(path), actual=f"more than {MAX_FILE_BYTES} bytes", allowed="a LoRA up to that size", remedy=REMEDY
        )
    return raw


def _length(view: memoryview) -> int:
    return int.from_bytes(view[:8], "little")


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 40 for one in value)


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found
