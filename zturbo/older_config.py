"""The older config schema, `generator`, `performance`, `resource`, read as today's: what has a meaning is mapped.

Each key that has none here is accepted with one ConfigWarning that says why. Types are checked all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from engine.bundle import FILE
from zturbo.strict import Place, described, struct_from

SECTIONS = ("generator", "performance", "resource")
BACKENDS = {"tensorrt": "tensorrt", "pytorch": "pytorch", "onnx": "onnxruntime"}
PRECISIONS = {"fp16": "fp16", "bf16": "bf16", "no": "fp32"}
ENGINE_DEPTH = 5
"""How many folders above `engine_path` a bundle is looked for: bundle/engines/<target>/<profiles>/<graph>.plan."""
_OFFLOAD = "weights and buffers stay on the device that runs the graphs"
MEANINGLESS = {
    "generator.use_xformers": "the backend chooses how attention is computed",
    "generator.enable_gradient_checkpointing": "nothing is trained here",
    "performance.cache_clear_interval": "buffers are kept for a few sizes only; `cache_mib` bounds the rest",
    "performance.attention_slicing": "the backend chooses how attention is computed; see `max_batch_size`",
    "performance.vae_slicing": "`max_batch_size` bounds how many pictures are decoded at a time",
    "resource.oom_retry_delay": "memory is taken before the first step; too little of it is an error at once",
    "resource.cpu_offload.enabled": _OFFLOAD,
    "resource.cpu_offload.offload_params": _OFFLOAD,
    "resource.cpu_offload.buffer_device": _OFFLOAD,
}  # fmt: skip
"""Why a key is not needed."""


class ConfigWarning(UserWarning):
    """A key of a config is accepted, but has no meaning here."""


Switch = Annotated[bool | None, described("true or false")]
Text = Annotated[str | None, described("text")]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class GeneratorSection(msgspec.Struct, frozen=True, kw_only=True):
    """What paints, and with which weights."""

    backend: Annotated[Literal["tensorrt", "pytorch", "onnx"] | None, described("tensorrt, pytorch or onnx")] = None
    engine_path: Text = None
    use_xformers: Switch = None
    enable_gradient_checkpointing: Switch = None
    mixed_precision: Annotated[Literal["fp16", "bf16", "no"] | None, described("fp16, bf16 or no")] = None
    device: Text = None


class PerformanceSection(msgspec.Struct, frozen=True, kw_only=True):
    """How much at a time."""

    max_batch_size: Annotated[Positive | None, described("an integer from 1 on")] = None
    cache_clear_interval: Annotated[Natural | None, described("an integer from 0 on")] = None
    attention_slicing: Annotated[
        bool | Positive | Literal["auto", "max"] | None, described("true, false, auto, max or a slice's size")
    ] = None
    vae_slicing: Switch = None


class OffloadSection(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the host's memory."""

    enabled: Switch = None
    offload_params: Switch = None
    buffer_device: Text = None


class ResourceSection(msgspec.Struct, frozen=True, kw_only=True):
    """What is done where memory is short."""

    oom_retry_delay: Annotated[Seconds | None, described("seconds, 0 or more")] = None
    cpu_offload: OffloadSection | None = None


class OlderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    generator: GeneratorSection | None = None
    performance: PerformanceSection | None = None
    resource: ResourceSection | None = None


def from_older(values: Mapping[str, Any], place: Place, folder: Path) -> dict[str, Any]:
    """The values of today's schema, with a ConfigWarning per key without one. Raises ConfigInvalid.

    place: what errors and warnings name. folder: what a relative engine_path is relative to.
    """
    older = struct_from(_no_as_text(values), OlderConfig, place)
    for key in _keys(values):
        if key in MEANINGLESS:
            message = f"{place.below(key)}: has no meaning here, {MEANINGLESS[key]}. Take it out."
            warnings.warn(message, ConfigWarning, stacklevel=4)
    generator, performance = older.generator or GeneratorSection(), older.performance or PerformanceSection()
    found = {
        "backend": BACKENDS.get(generator.backend or ""),
        "bundle": None if generator.engine_path is None else _bundle_of(generator.engine_path, folder),
        "precision": PRECISIONS.get(generator.mixed_precision or ""),
        "device": generator.device,
        "max_batch_size": performance.max_batch_size,
    }
    return {key: value for key, value in found.items() if value is not None}


def _no_as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """`mixed_precision: no` means the word; YAML reads it as false."""
    generator = values.get("generator")
    if isinstance(generator, Mapping) and generator.get("mixed_precision") is False:
        return {**values, "generator": {**generator, "mixed_precision": "no"}}
    return dict(values)


def _keys(values: Mapping[str, Any], above: str = "") -> list[str]:
    """Every key that has a value of its own, with those above it."""
    found = []
    for key, value in values.items():
        found += _keys(value, f"{above}{key}.") if isinstance(value, Mapping) else [f"{above}{key}"]
    return found


def _bundle_of(engine_path: str, folder: Path) -> str:
    """The bundle that the engines belong to: the nearest folder with a bundle.json, or the path as it is."""
    path = folder / engine_path
    near = [path, *path.parents][: ENGINE_DEPTH + 1]
    return str(next((one for one in near if (one / FILE).is_file()), path))
