"""A model's .safetensors file, judged by its size and header alone: what is in it, and that it is what its name says.

Opens regular files and no other. Knows neither how a header is judged (engine/safetensors_header.py) nor what models
need.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from engine.errors import SourceError
from engine.safetensors_header import Entry, read_header


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

    def refused(actual: str, allowed: str) -> SourceError:
        return SourceError(
            str(path), actual=actual, allowed=allowed,
            remedy="Get it again from where it came from, or save the model again with safe_serialization=True.",
        )  # fmt: skip

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise refused("no regular file", "a .safetensors file")
        with path.open("rb") as file:
            header = read_header(file, found.st_size, refused)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise refused(f"unreadable ({reason})", "a .safetensors file") from error
    return Safefile(path, header.tensors, header.metadata)
