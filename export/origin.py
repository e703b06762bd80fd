"""What a user names as the model to export, a folder, a checkpoint, a hub's id or random:NAME, becomes a folder.

Knows where such folders are kept and how an origin is written down; not how any of them is made. Light to import.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine.digest import file_sha256
from engine.errors import OptionInvalid, SourceError
from export import hub
from export.kept import SOURCES, kept_folder

RANDOM = "random:"
CHECKPOINT = ".safetensors"


@dataclass(frozen=True, slots=True)
class Origin:
    """A model in diffusers layout, and where it came from in words that a bundle keeps."""

    folder: Path
    text: str


def open_source(source: str, beside: Path, *, config: str | None = None, device: str = "cpu") -> Origin:
    """The folder of what was named; made or fetched where there is none yet.

    beside: the folder of bundles; what is made lies in its `.sources`. config: of a single checkpoint, a diffusers
    folder or a hub's id. device: where random weights are drawn. Raises SourceError, OptionInvalid or OutputError.
    """
    path = Path(source)
    if config is not None and not is_checkpoint(path):
        raise OptionInvalid(
            "--config", actual=f"{config!r} with {source}", allowed="with a .safetensors checkpoint only",
            remedy="Leave it out.",
        )  # fmt: skip
    if source.startswith(RANDOM):
        return _random(source, beside, device)
    if path.is_dir():
        return Origin(path, "folder")
    if path.is_file() or is_checkpoint(path):
        return _single_file(path, beside, config)
    return Origin(*_fetched(source))


def bundle_name(source: str) -> str:
    """How the bundle of what was named is called unless the caller says otherwise; touches no network.

    Raises SourceError for a random model that there is not.
    """
    if source.startswith(RANDOM):
        return _random_name(source)
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    if is_checkpoint(path):
        return path.stem
    match = hub.ID.fullmatch(source)
    return match[1].split("/")[1] if match else path.name


def is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a single checkpoint and not of a folder."""
    return path.suffix.lower() == CHECKPOINT and not path.is_dir()


def _random(source: str, beside: Path, device: str) -> Origin:
    from export import random_models
    from export.device import check_device

    name, seed = random_models.parse(source)
    check_device(device)
    place = beside / SOURCES / f"random-{name}-{seed}"
    folder = kept_folder(place, lambda folder: random_models.write(folder, name, seed=seed, device=device))
    return Origin(folder, f"{RANDOM}{name} seed:{seed}")


def _random_name(source: str) -> str:
    from export.random_models import parse

    name, seed = parse(source)
    return f"random-{name}" if seed == 0 else f"random-{name}-{seed}"


def _single_file(path: Path, beside: Path, config: str | None) -> Origin:
    from export.safefile import check_safetensors
    from export.single_file import configs_of, convert, refuse_pickle

    refuse_pickle(path)
    file = check_safetensors(path)
    if config is None:
        raise SourceError(
            str(path), actual="a single checkpoint without --config", allowed="a checkpoint and its configs",
            remedy="Pass --config DIR, a diffusers folder of the same kind of model (its weights are not needed), or "
            "with a network --config ORG/NAME@REVISION.",
        )  # fmt: skip
    plain = Path(config) if Path(config).is_dir() else _fetched(config, weights=False)[0]
    sha256 = file_sha256(path)
    both = hashlib.sha256(sha256.encode())
    for part in configs_of(plain):
        both.update(f"{part.relative_to(plain).as_posix()} {file_sha256(part)}\n".encode())
    place = beside / SOURCES / f"{path.stem}-{both.hexdigest()[:12]}"
    return Origin(kept_folder(place, lambda folder: convert(file, plain, folder)), f"file:{path.name} sha256:{sha256}")


def _fetched(text: str, *, weights: bool = True) -> tuple[Path, str]:
    """The folder and origin of a hub's model. A path's look-alike is asked for only where no folder begins it."""
    match = hub.ID.fullmatch(text)
    looks_local = not text.startswith(hub.PREFIX) and (Path(text).parent.is_dir() or re.match(r"[./~\\]", text))
    if match is None or looks_local:
        raise SourceError(
            text, actual="no such file or folder",
            allowed="a folder in diffusers layout, a .safetensors checkpoint, ORG/NAME@REVISION of a hub, random:NAME",
            remedy="Check the path; `models/emoji` ships with the repository, and hub:ORG/NAME is always a hub's.",
        )  # fmt: skip
    folder, commit = hub.fetch(text, weights=weights)
    return folder, f"{hub.PREFIX}{match[1]}@{commit}"
