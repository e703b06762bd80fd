"""A single .safetensors checkpoint with the configs of a diffusers folder → a whole diffusers folder.

Knows which parts of the configs are used, and that dtypes stay. The names inside a checkpoint are diffusers' business.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.errors import SourceError, shown
from export.families import FAMILIES
from export.safefile import Safefile
from export.silent import silent
from export.source import INDEX, TEXTS, UNUSED, read_index
from export.unsupported import WHOLE, check_checkpoint, check_parts, check_pipeline
from export.untrusted import check_size, checked_config, translated

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
MAX_TEXT_BYTES, MAX_TEXTS = 64 * 2**20, 200
"""Of all configs and tokenizers together; those of SDXL have 5 MB in 15 files."""


def refuse_pickle(path: Path) -> None:
    """Raise SourceError for a checkpoint whose name says that it is a pickle."""
    if path.suffix.lower() in PICKLES:
        raise SourceError(
            str(path), actual=f"a {path.suffix} checkpoint, a pickle: reading one runs the code in it",
            allowed="a .safetensors checkpoint, or a folder in diffusers layout",
            remedy="Get the .safetensors file of the same model, or convert it on a machine that may run its code.",
        )  # fmt: skip


def convert(file: Safefile, config: Path, folder: Path) -> None:
    """Write the checkpoint in diffusers layout into an empty folder, each weight in the dtype that it has.

    config: a diffusers folder, whose configs, scheduler and tokenizers are taken; it needs no weights.
    Raises SourceError where the two do not belong together.
    """
    import diffusers

    check_checkpoint(file.path, {name: entry.shape for name, entry in file.tensors.items()})
    index = read_index(config)
    name = check_pipeline(config / INDEX, index.get("_class_name"), FAMILIES)
    check_parts(config / INDEX, index, FAMILIES[name])
    kind: Any = getattr(diffusers, name)
    with tempfile.TemporaryDirectory() as place:
        plain = _plain_copy(config, Path(place) / "config")
        modules = {part: _class(*value) for part, value in index.items() if _is_module(part, value)}
        for part, module in modules.items():
            own = checked_config(module, config / part)
            with fitting(file, config):
                check_size(module, file.path, own, (file,))
        with fitting(file, config), translated(kind, file.path), silent():
            pipeline = _loaded(kind, file, plain)
            for part in modules:
                _check_filled(part, getattr(pipeline, part))
        with silent():
            pipeline.save_pretrained(folder, safe_serialization=True)


@contextmanager
def fitting(file: Safefile, config: Path) -> Iterator[None]:
    """A SourceError within the block becomes one about the two that do not belong together."""
    try:
        yield
    except SourceError as error:
        raise _lacking(file, f"what the configs of {config} describe ({error.actual})") from error


def _loaded(kind: Any, file: Safefile, plain: Path) -> Any:
    """The pipeline. diffusers moves each module once more; what got no weight is on torch's meta device and cannot."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        return kind.from_single_file(
            str(file.path.absolute()), config=str(plain), local_files_only=True, **dict.fromkeys(UNUSED)
        )
    except NotImplementedError as error:
        raise ValueError("weights of another architecture") from error
    except SingleFileComponentError as error:
        raise ValueError("one of its components is missing") from error


def _is_module(part: str, value: Any) -> bool:
    """Whether an entry of the index is a component that has weights and is used."""
    if part in UNUSED or not isinstance(value, list) or value[1] is None:
        return False
    return not any(word in value[1] for word in ("Scheduler", "Tokenizer"))


def _class(library: str, name: str) -> Any:
    """The class of a component. Raises SourceError for one that its library does not have."""
    import diffusers
    import transformers

    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), name, None)
    if not isinstance(kind, type) or not issubclass(kind, torch.nn.Module):
        raise SourceError(
            INDEX, actual=f"a component {shown(f'{library}.{name}')}", allowed="modules of diffusers and transformers",
            remedy="Pass the configs of a supported pipeline.",
        )  # fmt: skip
    return kind


def configs_of(config: Path) -> tuple[Path, ...]:
    """The texts of a diffusers folder: configs and tokenizers, in a fixed order. Raises SourceError for too many."""
    found = [path for path in sorted((*config.glob("*.json"), *config.glob("*/*"))) if path.suffix in TEXTS]
    found = [path for path in found if path.is_file()]
    if len(found) > MAX_TEXTS or sum(path.stat().st_size for path in found) > MAX_TEXT_BYTES:
        raise SourceError(
            str(config), actual=f"configs and tokenizers of more than {MAX_TEXT_BYTES} bytes or {MAX_TEXTS} files",
            allowed="a folder in diffusers layout", remedy="Pass the configs of a supported pipeline.",
        )  # fmt: skip
    return tuple(found)


def _plain_copy(config: Path, place: Path) -> Path:
    """The texts alone: nothing that diffusers could load in place of what a checkpoint lacks."""
    place.mkdir()
    for path in configs_of(config):
        target = place / path.relative_to(config)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return place


def _check_filled(part: str, module: torch.nn.Module) -> None:
    """Raise ValueError where the checkpoint had nothing for a weight of a module."""
    missing = [name for name, weight in module.named_parameters() if weight.is_meta]
    if missing:
        raise ValueError(f"nothing for {part}'s {missing[0]!r}, {len(missing)} in all")


def _lacking(file: Safefile, what: str) -> SourceError:
    return SourceError(
        str(file.path), actual=f"a checkpoint without {what}",
        allowed=WHOLE,
        remedy="Export the checkpoint of the whole model, or check that the configs of --config are its own.",
    )  # fmt: skip
