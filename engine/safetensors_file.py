"""A .safetensors file in memory, and its tensors as float32.

One read of the file: what is hashed is what is parsed. Needs numpy alone, and takes bfloat16, which numpy has not.
Knows neither how a header is judged (engine/safetensors_header.py) nor what the tensors are of.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from engine.binding import Float32Array
from engine.errors import LoraInvalid
from engine.safetensors_header import read_header

MAX_FILE_BYTES = 2 << 30
"""SDXL's LoRA of rank 256 has 1.7 GB in fp16."""
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
REMEDY = "Pass a LoRA that was saved as .safetensors, or save it again."


class SafetensorsFile:
    """A file in memory. entries: by name; metadata: texts by name. sha256: of the whole file.

    Raises LoraInvalid where it is no such file, or none that can be believed.
    """

    def __init__(self, path: Path) -> None:
        self.path, raw = path, _read(path)
        self.sha256 = hashlib.sha256(raw).hexdigest()
        header = read_header(io.BytesIO(raw), len(raw), self.refused, NUMPY)  # BytesIO shares what it is given
        self.entries, self.metadata = header.tensors, header.metadata
        self._data = memoryview(raw)[header.data_begin :]

    def array(self, name: str) -> Float32Array:
        """A tensor as float32, a copy."""
        entry = self.entries[name]
        begin, end = entry.data_offsets
        flat = np.frombuffer(self._data[begin:end], NUMPY[entry.dtype])
        if entry.dtype == "BF16":  # the upper half of a float32
            flat = (flat.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):  # of float64: infinite, as its reader will see
            return flat.astype(np.float32).reshape(entry.shape)

    def refused(self, actual: str, allowed: str) -> LoraInvalid:
        """The error of this file."""
        return LoraInvalid(str(self.path), actual=actual, allowed=allowed, remedy=REMEDY)


def _read(path: Path) -> bytes:
    """All bytes of a regular file."""

    def refused(actual: str, allowed: str = "a .safetensors file") -> LoraInvalid:
        return LoraInvalid(str(path), actual=actual, allowed=allowed, remedy=REMEDY)

    if not path.is_file():
        raise refused("no such file")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # a read makes room for all that it is asked for
            raw = stream.read(min(size, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise refused(f"unreadable ({error.strerror or error})") from error
    if len(raw) > MAX_FILE_BYTES:
        raise refused(f"more than {MAX_FILE_BYTES} bytes", "a LoRA up to that size")
    return raw
