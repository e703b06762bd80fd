"""The folder to export: its layout, its configs, and the hash of its files. Does not load a weight."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from engine.digest import file_sha256
from engine.errors import SourceError, shown
from engine.schema import Defaults

INDEX = "model_index.json"
RESAVE = "Save the pipeline again with diffusers' save_pretrained()."
"""What mends a folder that is not as diffusers would have written it."""
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""Where components of an index may come from; the last is diffusers' own folder of the safety checker."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that a pipeline may name and no graph is made of: neither fetched nor converted."""
DEFAULTS = "generation_config.json"
"""Optional, beside model_index.json: what a request gets where it names nothing. The keys are those of Defaults."""
MAX_JSON_BYTES = 4 * 2**20
"""Of a config or an index of shards; the largest honest ones have a few hundred kilobytes."""
CODE = ("auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code", "quantization_config")
"""Keys that make the libraries import or download something."""
LARGEST = 2**20
"""Of a number in a config; the largest honest ones are vocabularies."""
LONGEST, MOST_BETAS = 64, 10_000
"""Of a list in a config: blocks of a denoiser; and a scheduler's betas one by one."""
MOST_LAYERS = 128
TOTALS = ("total_size", "total_parameters")
"""Of all shards, in their index: large, and used by nobody."""
TEXTS = (".json", ".txt", ".model", ".jinja")
"""Configs, vocabularies, and templates of chats."""
PARTS = (*TEXTS, ".safetensors")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises SourceError."""
    if not folder.is_dir():
        raise SourceError(
            str(folder), actual="no such folder", allowed="a folder in diffusers layout",
            remedy="Check the path; `models/emoji` ships with the repository.",
        )  # fmt: skip
    try:
        index = read_json(folder / INDEX)
    except SourceError as error:
        raise _no_pipeline(folder) if isinstance(error.__cause__, FileNotFoundError) else error from error.__cause__
    for name, part in index.items():
        _check_part(folder / INDEX, name, part)
    return index


def _no_pipeline(folder: Path) -> SourceError:
    """The error for a folder without an index, with what it may be instead."""
    names = {path.name for path in folder.iterdir()}
    remedy = RESAVE
    if names & {"adapter_config.json", "pytorch_lora_weights.safetensors"}:
        remedy = "This is an adapter: fuse its .safetensors file with `--lora FILE` into the model that it is for."
    elif "config.json" in names:
        remedy = "This is one component: pass the folder of the whole pipeline, which has it as a folder."
    elif checkpoints := sorted(name for name in names if name.endswith(".safetensors")):
        remedy = f"Pass the checkpoint itself, {shown(checkpoints[0])}, with --config."
    return SourceError(
        str(folder), actual=f"a folder without {INDEX}", allowed="a folder in diffusers layout", remedy=remedy
    )


def _check_part(path: Path, name: str, part: object) -> None:
    """An entry of the index: a component of a known library, or a plain setting. Raises SourceError."""
    plain = part is None or isinstance(part, str | bool | int | float)
    if name.startswith("_") and plain:
        return
    if name.isidentifier() and not name.startswith("_"):
        if plain:
            return
        if isinstance(part, list) and len(part) == 2:
            library, kind = part
            if library in LIBRARIES and (kind is None or (isinstance(kind, str) and kind.isidentifier())):
                return
    raise SourceError(
        str(path), actual=f"{shown(name)}: {shown(part)}",
        allowed="components of diffusers and transformers, and plain settings",
        remedy="A pipeline with code of its own cannot be exported; save a supported one with save_pretrained().",
    )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of the source. Raises SourceError where it is missing, not an object, or not a plain config."""
    try:
        value = json.loads(_read_bounded(path))
        _check_plain(path, value)
    except (OSError, ValueError, RecursionError) as error:
        actual = "no such file" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise SourceError(
            str(path), actual=actual, allowed="a JSON object in diffusers layout",
            remedy=RESAVE,
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        raise SourceError(
            str(path), actual=type(value).__name__, allowed="a JSON object in diffusers layout",
            remedy=RESAVE,
        )  # fmt: skip
    return value


def _read_bounded(path: Path) -> bytes:
    """The bytes of a file of a sane size; a pipe would keep its reader waiting. Raises OSError or ValueError."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
    return raw


def _check_plain(path: Path, value: object, key: str = "") -> None:
    """Raise SourceError for keys that name code, and for numbers and lists that no model has, anywhere in a config."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in CODE and inner:
                raise _refused(path, f"{name}, which asks for code or parts from elsewhere")
            if name not in TOTALS:
                _check_plain(path, inner, name)
    elif isinstance(value, list):
        if len(value) > (MOST_BETAS if key == "trained_betas" else LONGEST):
            raise _refused(path, f"a list of {len(value)} as {shown(key)}")
        for inner in value:
            _check_plain(path, inner, key)
    elif isinstance(value, int | float) and not _is_sane(key, value):
        raise _refused(path, f"{shown(key)} of {shown(value)}")


def _is_sane(key: str, value: float) -> bool:
    """Whether a config's number is one that a model may have; diffusers writes -inf for "no lower end"."""
    return value == -math.inf or -LARGEST <= value <= (MOST_LAYERS if "layers" in key else LARGEST)


def _refused(path: Path, actual: str) -> SourceError:
    return SourceError(
        str(path), actual=actual, allowed="a config that diffusers or transformers saved",
        remedy=RESAVE,
    )  # fmt: skip


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
