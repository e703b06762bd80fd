"""Tables that were probed before, on disk: an export of another model with the same noise finds them again.

An entry's name is a hash of everything it depends on, so nothing in here goes stale; an entry that cannot be read is
none. Whoever deletes the folder loses seconds. Does not know how a table is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from engine import tablefile
from engine.binding import Float32Array

CODE = ("probe", "refused", "rows", "scheduler", "schedulers", "solver", "tabled", "table_cache")
LIBRARIES = ("diffusers", "numpy", "scipy", "torch", "torchsde")


@dataclass(frozen=True, slots=True, eq=False)
class Tabled:
    """One scheduler's tables. tables, late: for each of etas (or one), by step count; late may be empty."""

    min_steps: int
    max_steps: int
    order: int
    warm: int
    etas: tuple[float, ...]
    tables: list[list[Float32Array]]
    late: list[list[Float32Array]]


def default_folder() -> Path:
    """Where this platform keeps what can be made again."""
    return Path(platformdirs.user_cache_dir("zturbo", appauthor=False)) / "tables"


def entry_name(scheduler: Any, etas: Sequence[float]) -> str:
    """The file name of one scheduler's tables: names of ours that mean the same to its class share it."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    facts = [type(scheduler).__name__, settings, list(etas), _makers()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:40] + ".npz"


@cache
def _makers() -> list[str]:
    """What finds a table: the code that probes, and the libraries it probes."""
    here = Path(__file__).parent
    files = [*(here / f"{name}.py" for name in CODE), Path(tablefile.__file__)]
    return [*(hashlib.sha256(path.read_bytes()).hexdigest() for path in files), *map(_version, LIBRARIES)]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def load(path: Path) -> Tabled | None:
    """An entry, or None where there is none that can be read."""
    with contextlib.suppress(Exception):  # damage raises whatever zipfile, zlib and numpy raise; all of it is a miss
        raw = path.read_bytes()
        digest, _, body = raw.partition(b"\n")
        if digest.decode() == hashlib.sha256(body).hexdigest():
            return _unpacked(body)
    return None


def save(path: Path, found: Tabled) -> None:
    """Write an entry in one move; a disk that does not take it costs the next export some seconds, no more."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        body = _packed(found)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
            stream.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        try:
            Path(stream.name).replace(path)
        except OSError:
            os.unlink(stream.name)  # noqa: PTH108 - the name that tempfile gave
            raise


def _packed(found: Tabled) -> bytes:
    tables = {str(k): parts for k, parts in enumerate(found.tables)}
    late = {str(k): parts for k, parts in enumerate(found.late)}
    columns = found.tables[0][0].shape[1]
    facts = [found.min_steps, found.max_steps, found.order, found.warm, found.etas, columns]
    return json.dumps(facts).encode() + b"\n" + tablefile.archive(tablefile.packed(tables, late))


def _unpacked(body: bytes) -> Tabled:
    facts, _, archive = body.partition(b"\n")
    low, high, order, warm, etas, columns = json.loads(facts)
    file = tablefile.TableFile(archive)
    keys = [str(k) for k in range(len(etas) or 1)]
    tables = [file.table(key, columns) for key in keys]
    late = [file.warm(key) for key in keys] if warm else []
    every = range(high - low + 1)
    lists = ([[one.at(k) for k in every] for one in some] for some in (tables, late))
    return Tabled(low, high, order, warm, tuple(etas), *lists)
