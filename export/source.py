"""The folder to export: its layout, its configs, and the hash of its files. Does not load a weight."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from engine.digest import file_sha256
from engine.errors import SourceError
from engine.schema import Defaults

INDEX = "model_index.json"
DEFAULTS = "generation_config.json"
"""Optional, beside model_index.json: what a request gets where it names nothing. The keys are those of Defaults."""
PARTS = (".json", ".safetensors", ".txt", ".model")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises SourceError."""
    if not folder.is_dir():
        raise SourceError(
            str(folder), actual="no such folder", allowed="a folder in diffusers layout",
            remedy="Check the path; `models/emoji` ships with the repository.",
        )  # fmt: skip
    return read_json(folder / INDEX)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of the source. Raises SourceError where it is missing or not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(
            str(path), actual=f"unreadable ({error})", allowed="a JSON object in diffusers layout",
            remedy="Save the pipeline again with diffusers' save_pretrained().",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        raise SourceError(
            str(path), actual=type(value).__name__, allowed="a JSON object in diffusers layout",
            remedy="Save the pipeline again with diffusers' save_pretrained().",
        )  # fmt: skip
    return value


def read_defaults(folder: Path, fallback: Defaults) -> Defaults:
    """The fallback with what generation_config.json says instead. Raises SourceError for unknown keys or types."""
    path = folder / DEFAULTS
    if not path.exists():
        return fallback
    try:
        return msgspec.convert({**msgspec.to_builtins(fallback), **read_json(path)}, Defaults)
    except msgspec.ValidationError as error:
        raise SourceError(
            str(path), actual=str(error), allowed=", ".join(msgspec.to_builtins(fallback)),
            remedy="Correct it, or remove it to get the family's defaults.",
        ) from error  # fmt: skip


def source_sha256(folder: Path, components: tuple[str, ...]) -> str:
    """One hash over the names and hashes of the index and of the components' files, in a fixed order."""
    files = [path for path in (folder / INDEX, folder / DEFAULTS) if path.exists()]
    for component in components:
        files += sorted(path for path in (folder / component).iterdir() if path.suffix in PARTS)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
