"""A .safetensors file, judged by its size and header alone: what is in it, and that it is what its name says.

Reads the header and no tensor, in bounded memory; runs nothing that the file holds. Does not know what models need.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import SourceError, shown

MAX_HEADER_BYTES = 16 * 2**20
"""SDXL's checkpoint has 0.3 MB; trainers' notes in a LoRA's metadata reach a few. Decoding takes up to 25 times it."""
MAX_TENSORS = 100_000
MAX_AXES = 8
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
}  # fmt: skip
METADATA = "__metadata__"
DISGUISES = {b"PK\x03\x04": "a zip archive, as torch.save() writes", b"\x80": "a pickle", b"\x93NUMPY": "a numpy array"}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor. data_offsets: its first byte and the one after its last, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Safefile:
    """What a file's header says. tensors: in the order of the header."""

    path: Path
    tensors: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(entry.elements for entry in self.tensors.values())


def check_safetensors(path: Path) -> Safefile:
    """The header of a .safetensors file whose tensors fill it without a gap or an overlap. Raises SourceError."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise damaged(path, "no regular file")
        with path.open("rb") as file:
            raw = _header(path, file, found.st_size)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise damaged(path, f"unreadable ({getattr(error, 'strerror', None) or error})") from error
    tensors, metadata = _decoded(path, raw)
    _check_layout(path, tensors, found.st_size - 8 - len(raw))
    return Safefile(path, tensors, metadata)


def damaged(path: Path, actual: str) -> SourceError:
    """The error for a file that is no sound .safetensors file."""
    return SourceError(
        str(path), actual=actual, allowed="a whole .safetensors file",
        remedy="Get it again from where it came from, or save the model again with safe_serialization=True.",
    )  # fmt: skip


def _header(path: Path, file: Any, size_bytes: int) -> bytes:
    """The bytes of the JSON header, whose length the first eight bytes tell."""
    start = file.read(8)
    for magic, name in DISGUISES.items():
        if start.startswith(magic) and (len(magic) > 1 or start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise damaged(path, name)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise damaged(path, f"{size_bytes} bytes with a header of {length}")
    raw: bytes = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise damaged(path, f"a header that begins with {shown(raw[:8])}")
    return raw


def _decoded(path: Path, raw: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata. Entries stay bytes until it is known how many there are."""
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if len(entries) > MAX_TENSORS:
            raise damaged(path, f"{len(entries)} tensors")
        notes = entries.pop(METADATA, None)
        metadata = {} if notes is None else msgspec.json.decode(notes, type=dict[str, str])
        return {name: msgspec.json.decode(entry, type=Entry) for name, entry in entries.items()}, metadata
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, f"a header that cannot be read ({str(error)[:120]})") from error


def _check_layout(path: Path, tensors: dict[str, Entry], data_bytes: int) -> None:
    """Every dtype known, every size what shape and dtype make, and the tensors end to end over all of the file."""
    if not tensors:
        raise damaged(path, "no tensor")
    for name, entry in tensors.items():
        begin, end = entry.data_offsets
        if entry.dtype not in BITS or len(entry.shape) > MAX_AXES or not all(0 <= n < 2**48 for n in entry.shape):
            raise damaged(path, f"tensor {shown(name)} of dtype {shown(entry.dtype)} and shape {shown(entry.shape)}")
        if (end - begin) * 8 != entry.elements * BITS[entry.dtype]:
            raise damaged(path, f"tensor {shown(name)} of shape {shown(entry.shape)} in {end - begin} bytes")
    at = 0
    for begin, end in sorted(entry.data_offsets for entry in tensors.values()):
        if begin != at:
            raise damaged(path, f"a gap or an overlap of tensors at byte {at}")
        at = end
    if at != data_bytes:
        raise damaged(path, f"{data_bytes} bytes of tensors where the header has {at}")
