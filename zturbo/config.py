"""What a config.yaml says: a bundle, what runs it, where pictures go, and what requests get where they name nothing.

Owns the schema, today's and the choice between it and the older one. What a request may ask is Request's own to say;
what a backend can do is found when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine.errors import ConfigInvalid, RequestInvalid
from runtime.per_image import FIELDS
from runtime.request import Request
from zturbo.older_config import SECTIONS, from_older
from zturbo.strict import Place, check_fields, described, known_keys, struct_from
from zturbo.yaml_file import read_yaml

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

LOADING = ("backend", "device", "precision", "threads", "capture", "cache_mib", "max_batch_size")
"""The keys that are options of Pipeline.load."""
PATHS = ("bundle", "out")
PER_CALL = ("prompt", "latents", "noise", "image", "mask", "strength")
"""Fields of a request that have no default: the prompt, what no file of text holds, and what goes with an image."""
DEFAULTS = tuple(field.name for field in fields(Request) if field.name not in PER_CALL)


Name = Annotated[str, msgspec.Meta(min_length=1, pattern=r"\A[^\0]+\Z")]
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Backend = Literal["auto", "tensorrt", "tensorrt_rtx", "onnxruntime", "pytorch"]
Precision = Literal["fp32", "fp16", "bf16"]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A config, checked when it is made; None leaves the choice to whoever runs it.

    bundle, out: folders. backend to max_batch_size: as Pipeline.load takes them. defaults: fields of a Request for
    calls that do not name them, other than those that belong to one call (prompt and arrays).
    Raises ConfigInvalid.
    """

    bundle: Annotated[Name | None, described("a bundle's folder")] = None
    backend: Annotated[Backend, described("auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch")] = "auto"
    device: Annotated[Name | None, described("the backend's word for it: cpu, cuda, cuda:1 …")] = None
    precision: Annotated[Precision | None, described("fp32, fp16 or bf16")] = None
    threads: Annotated[Threads | None, described("an integer from 1 to 1024")] = None
    capture: Annotated[bool, described("true or false")] = True
    cache_mib: Annotated[Mebibytes, described("an integer from 0 to 1048576")] = 256
    max_batch_size: Annotated[Threads | None, described("an integer from 1 to 1024")] = None
    out: Annotated[Name, described("a folder for pictures")] = "out"
    defaults: Annotated[dict[str, Any], described("fields of a request")] = {}

    def __post_init__(self) -> None:
        place = Place("config")
        check_fields(self, place)
        _check_defaults(self.defaults, place.below("defaults"))

    def request(self, prompt: str, **asked: Any) -> Request:
        """The request of a call: what it asked, then the defaults; None asks for nothing. Raises RequestInvalid.

        Where a call says how many images there are, by a number or a list, the defaults do not: their number and their
        lists are left out.
        """
        named = {name: value for name, value in asked.items() if value is not None}
        if "num_images" in named or any(_is_listed(named.get(name)) for name in FIELDS):
            defaults = {
                k: v for k, v in self.defaults.items() if k != "num_images" and not (k in FIELDS and _is_listed(v))
            }
        else:
            defaults = self.defaults
        return Request(prompt=prompt, **{**defaults, **named})

    def load_options(self) -> dict[str, Any]:
        """The options of Pipeline.load."""
        return {name: getattr(self, name) for name in LOADING}

    def load_pipeline(self, bundle: Path | str | None = None, **asked: Any) -> Pipeline:
        """The bundle on its backend; what is passed and not None wins. Raises what Pipeline.load does."""
        from runtime.pipeline import Pipeline

        folder = self.bundle if bundle is None else bundle
        if folder is None:
            raise ConfigInvalid(
                "config, bundle", actual="none", allowed="a bundle's folder",
                remedy="Name it in the config or on the command line.",
            )  # fmt: skip
        named = {name: value for name, value in asked.items() if value is not None}
        return Pipeline.load(folder, **{**self.load_options(), **named})


def _is_listed(value: Any) -> bool:
    """Whether it is a value for each image."""
    return isinstance(value, (list, tuple, range))


def load_config(path: Path | str) -> Config:
    """The config of a YAML file, in today's schema or the older one. Relative paths in it are relative to the file.

    An empty file is a config of defaults. Raises ConfigInvalid; warns of keys without meaning with ConfigWarning.
    """
    path = Path(path)
    values = read_yaml(path)
    return _config_of({} if values is None else values, Place(str(path)), path.absolute().parent)


def as_config(config: Config | Mapping[str, Any] | Path | str) -> Config:
    """A config as it is, or that of a mapping, whose paths are those of the working folder, or of a file.

    Raises ConfigInvalid.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, (Path, str)):
        return load_config(config)
    return _config_of(config, Place("config"), Path())


def _config_of(values: Any, place: Place, folder: Path) -> Config:
    """place: what errors name. folder: where relative paths begin."""
    given = known_keys(values, (*Config.__struct_fields__, *SECTIONS), place)
    older = [key for key in given if key in SECTIONS]
    if older and len(older) < len(given):
        other = next(key for key in given if key not in SECTIONS)
        raise ConfigInvalid(
            str(place), actual=f"'{older[0]}' of the older schema beside '{other}' of today's", allowed="one schema",
            remedy="Write the older keys as today's: docs/config.yaml shows them.",
        )  # fmt: skip
    if older:
        given = from_older(given, place, folder)
    if isinstance(defaults := given.get("defaults"), Mapping):
        _check_defaults(dict(defaults), place.below("defaults"))
    config = struct_from(given, Config, place)
    return msgspec.structs.replace(config, **{
        key: str(folder / path) for key in PATHS if key in given and (path := getattr(config, key)) is not None
    })  # fmt: skip


def _check_defaults(defaults: dict[str, Any], place: Place) -> None:
    """Request itself says what is wrong with them."""
    known_keys(defaults, DEFAULTS, place)
    try:
        Request(prompt="a prompt", **defaults)
    except RequestInvalid as error:
        field = error.subject.partition(", ")[2]
        raise ConfigInvalid(
            str(place.below(field)), actual=error.actual, allowed=error.allowed, remedy=error.remedy
        ) from error
