"""The header of a .safetensors file, judged before a byte of it is believed: the one judge of models and of LoRAs.

Reads the header and no tensor, in bounded memory. Does not know what the tensors are of, nor whose error a refusal is:
who asks hands in what makes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from engine.errors import ZturboError, shown

MAX_HEADER_BYTES = 16 * 2**20
"""SDXL's checkpoint has 0.3 MB; trainers' notes in a LoRA's metadata reach a few. Decoding takes up to 25 times it."""
MAX_NAMES = 100_000
"""Of tensors, or of notes in the metadata; SDXL's checkpoint has 2,500 tensors."""
MAX_AXES = 8
MAX_AXIS = 2**48
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
}  # fmt: skip
METADATA = "__metadata__"
PICKLES = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
"""How a pickle begins: its opcode PROTO and a protocol. As a length they are 640 and more, which a header may have."""
DISGUISES = {
    b"PK\x03\x04": "a zip archive, as torch.save() writes", b"\x93NUMPY": "a numpy array", b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file", b"version ": "a pointer of Git LFS in place of the file", b"<!DOCTYP": "a web page",
    b"<html": "a web page", **dict.fromkeys(PICKLES, "a pickle, which can run code"),
}  # fmt: skip
"""What files are that are no .safetensors file, by their first bytes."""
Refuse = Callable[[str, str], ZturboError]
"""The error of (actual, allowed); who asks knows the file's name and what mends it."""


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
class Header:
    """What a header says. tensors: in its order. data_begin: the byte of the file that the tensors begin at."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    data_begin: int


def read_header(stream: BinaryIO, size_bytes: int, refuse: Refuse, dtypes: Collection[str] = DTYPE_BITS) -> Header:
    """The header of a file whose tensors fill it without a gap or an overlap; raises what `refuse` makes.

    stream: at the file's first byte; it is left at the first tensor's. size_bytes: of the whole file. dtypes: those of
    DTYPE_BITS that the reader takes. The form is that of safetensors' own README: eight bytes of length, little-endian,
    a JSON object, the tensors.
    """
    raw = _raw_header(stream, size_bytes, refuse)
    entries = members(raw, refuse, "a header")
    notes = entries.pop(METADATA, None)
    metadata = {} if notes is None else _metadata(notes, refuse)
    if not entries:
        raise refuse("no tensor", "at least one")
    tensors = {name: _entry(name, entry, refuse) for name, entry in entries.items()}
    for name, entry in tensors.items():
        _check_entry(name, entry, dtypes, refuse)
    data_begin = 8 + len(raw)
    _check_layout(tensors, size_bytes - data_begin, refuse)
    return Header(tensors, metadata, data_begin)


class _Name(str):
    """A name in a JSON object; msgspec calls back for each, also for those that a dict would have once."""

    __slots__ = ()


def members(raw: bytes | str | msgspec.Raw, refuse: Refuse, what: str) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, their values left as they stand; refused where a name is there twice.

    what: the object, for a message.
    """
    names: list[str] = []

    def noted(_kind: Any, name: str) -> _Name:
        names.append(name)
        if len(names) > MAX_NAMES:
            raise ValueError(f"more than {MAX_NAMES} names")
        return _Name(name)

    found: dict[_Name, msgspec.Raw] = decoded(
        raw, dict[_Name, msgspec.Raw], refuse, what, f"a JSON object of at most {MAX_NAMES} names", noted
    )
    if len(found) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise refuse(f"{what} that has {shown(twice)} twice", "each name once")
    return {str(name): value for name, value in found.items()}


def decoded(
    raw: bytes | str | msgspec.Raw, kind: Any, refuse: Refuse, what: str, allowed: str,
    hook: Callable[[Any, str], _Name] | None = None,
) -> Any:  # fmt: skip
    """JSON of one kind; what cannot be read as that is refused."""
    try:
        return msgspec.json.decode(raw, type=kind, dec_hook=hook)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise refuse(f"{what} that cannot be read ({str(error)[:120]})", allowed) from error


def _raw_header(stream: BinaryIO, size_bytes: int, refuse: Refuse) -> bytes:
    """The bytes of the JSON header. Its length is judged first, for a pickle's first bytes may be a length as well."""
    start = stream.read(8)
    length, most = int.from_bytes(start, "little"), min(MAX_HEADER_BYTES, size_bytes - 8)
    if len(start) == 8 and 2 <= length <= most:
        raw = stream.read(length)
        if len(raw) == length and raw.startswith(b"{"):
            return raw
        actual = f"a header that begins with {shown(raw[:8])}"
    else:
        actual = f"a header of {length} bytes" if len(start) == 8 else "no header"
    disguise = next((name for magic, name in DISGUISES.items() if start.startswith(magic)), None)
    raise refuse(
        disguise or f"{actual} in a file of {size_bytes}",
        f"a .safetensors file, whose header is a JSON object of at most {MAX_HEADER_BYTES} bytes",
    )


def _metadata(notes: msgspec.Raw, refuse: Refuse) -> dict[str, str]:
    """Texts by name."""
    members(notes, refuse, "metadata")
    found: dict[str, str] = decoded(notes, dict[str, str], refuse, "metadata", "texts by name")
    return found


def _entry(name: str, raw: msgspec.Raw, refuse: Refuse) -> Entry:
    """One tensor's entry: three members, and each once."""
    what = f"tensor {shown(name)} with an entry"
    members(raw, refuse, what)
    found: Entry = decoded(raw, Entry, refuse, what, "dtype, shape and data_offsets alone")
    return found


def _check_entry(name: str, entry: Entry, dtypes: Collection[str], refuse: Refuse) -> None:
    """A dtype that the reader takes, a shape of a sane size, and as many bytes as the two make."""
    if entry.dtype not in dtypes:
        raise refuse(f"tensor {shown(name)} of dtype {shown(entry.dtype)}", ", ".join(dtypes))
    if (axes := len(entry.shape)) > MAX_AXES:  # millions of them would take seconds to show
        raise refuse(f"tensor {shown(name)} of {axes} axes", f"at most {MAX_AXES}")
    if not all(0 <= size < MAX_AXIS for size in entry.shape):
        raise refuse(f"tensor {shown(name)} of shape {shown(entry.shape)}", "sizes of 0 to 2⁴⁸ − 1")
    begin, end = entry.data_offsets
    if (end - begin) * 8 != (bits := entry.elements * DTYPE_BITS[entry.dtype]):
        raise refuse(
            f"tensor {shown(name)} in {shown(end - begin)} bytes",
            f"{shown(bits // 8)}, as {entry.dtype} of shape {shown(entry.shape)} has",
        )


def _check_layout(tensors: Mapping[str, Entry], data_bytes: int, refuse: Refuse) -> None:
    """Every byte behind the header belongs to one tensor, as the format demands."""
    at, allowed = 0, "tensors end to end over all of the file"
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != at:
            kind = "a gap" if begin > at else "an overlap"
            raise refuse(f"{kind}: tensor {shown(name)} at byte {shown(begin)}, behind {at} bytes of others", allowed)
        at = end
    if at != data_bytes:
        raise refuse(f"{data_bytes} bytes of tensors where the header has {at}", allowed)
