"""A LoRA file as pairs of low-rank matrices: which keys belong together, and how much each pair counts.

Knows the endings that the dialects give a layer's two matrices, and not how any of them names a layer: the stem before
the ending is for whoever reads the pairs. What is not of this kind (DoRA, LoHa, LoKr …) is refused, not left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.binding import Float32Array
from engine.errors import LoraInvalid, shown
from engine.safetensors_file import SafetensorsFile
from engine.safetensors_header import decoded, members

DOWN = (
    ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight",
    ".lora_linear_layer.down.weight", ".down.weight",
)  # fmt: skip
UP = tuple(ending.replace("down", "up").replace("_A", "_B") for ending in DOWN)
"""kohya, peft (with its adapter's name where a module was saved whole), diffusers today and before; the last is of
attention processors, `….to_q_lora.down.weight`."""
ALPHA = (".alpha",)
FOREIGN = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr",
    "lora_mid": "LoCon's CP form", "oft_": "OFT", ".diff": "whole differences of weights", ".bias": "a bias",
}  # fmt: skip
ADAPTER = "lora_adapter_metadata"
"""Where diffusers writes the settings of an adapter that it saves: a JSON object."""
ALLOWED = "a LoRA of two matrices to a layer, with kohya's, diffusers' or peft's names"
FUSE = "Pass one that has low-rank pairs alone."
MAX_WEIGHT = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One layer's matrices: it adds scale · up · down to the weights.

    stem: the layer's name in this file; key: the first of its keys. down: (rank, inputs …), up: (outputs, rank …); the
    axes of a convolution's kernel follow.
    """

    stem: str
    key: str
    down: Float32Array
    up: Float32Array
    scale: float

    @property
    def rank(self) -> int:
        """Of the two."""
        return int(self.down.shape[0])


class LoraFile:
    """The pairs of a file; its tensors are read as they are asked for. sha256: of the file.

    Raises LoraInvalid, which names the file and the first key that is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._file = SafetensorsFile(path)
        self.path, self.sha256 = path, self._file.sha256
        self._keys = self._by_stem()
        self._adapter = self._settings()

    @property
    def stems(self) -> tuple[str, ...]:
        """The layers' names, in the file's order."""
        return tuple(self._keys)

    def first_key(self, stem: str) -> str:
        """The key that errors about a layer name."""
        return next(iter(self._keys[stem].values()))

    def down_key(self, stem: str) -> str:
        """The key of a layer's A, which its pair is named by."""
        return self._keys[stem]["down"]

    def rank(self, stem: str) -> int:
        """A layer's rank, by the shape of A; nothing is read for it."""
        shape = self._file.entries[self.down_key(stem)].shape
        return shape[0] if shape else 0

    def pairs(self) -> Iterator[Pair]:
        """Every layer's pair, checked: two matrices of one rank and finite values."""
        return (self.pair(stem) for stem in self.stems)

    def pair(self, stem: str) -> Pair:
        """One layer's pair. Raises LoraInvalid."""
        keys = self._keys[stem]
        down, up = (self._file.array(keys[part]) for part in ("down", "up"))
        if min(down.ndim, up.ndim) < 2 or down.shape[0] != up.shape[1] or not down.size or not up.size:
            raise self.refused(keys["down"], f"matrices of {down.shape} and {up.shape}, which do not fit together")
        for part, matrix in (("down", down), ("up", up)):
            if not np.isfinite(matrix).all():
                raise self.refused(keys[part], "values that are not finite")
        return Pair(stem, keys["down"], down, up, self._scale(stem, len(down)))

    def refused(self, key: str, actual: str, allowed: str = ALLOWED, remedy: str = FUSE) -> LoraInvalid:
        """The error of one key of this file."""
        return LoraInvalid(f"{self.path}, key {shown(key)}", actual=actual, allowed=allowed, remedy=remedy)

    def _by_stem(self) -> dict[str, dict[str, str]]:
        """{stem: {`down`, `up`, `alpha`: its key}}."""
        found: dict[str, dict[str, str]] = {}
        for key in self._file.entries:
            stem, part = _parted(key)
            if not stem:
                kind = next((name for mark, name in FOREIGN.items() if mark in key), "a key of another kind")
                raise self.refused(key, kind)
            if part in found.setdefault(stem, {}):
                raise self.refused(key, f"one matrix twice, also as {shown(found[stem][part])}")
            found[stem][part] = key
        for keys in found.values():
            if missing := {"down", "up"} - set(keys):
                raise self.refused(next(iter(keys.values())), f"half of a pair, without its {min(missing)}")
        return found

    def _scale(self, stem: str, rank: int) -> float:
        """What a product counts: alpha / rank by the layer's own alpha, else by the adapter's; 1 without either."""
        key = self._keys[stem].get("alpha")
        if key is None:
            return self._adapter_scale(stem, rank)
        alpha = self._file.array(key)
        if alpha.size != 1 or not np.isfinite(alpha).all():
            raise self.refused(key, "an alpha that is no finite number", "a finite number")
        return float(alpha.reshape(-1)[0]) / rank

    def _adapter_scale(self, stem: str, rank: int) -> float:
        """As peft has it: `lora_alpha`, or what `alpha_pattern` says of this layer."""
        for prefix, settings in self._adapter.items():
            if stem.startswith(f"{prefix}."):
                own = {k: v for k, v in settings.get("alpha_pattern", {}).items() if f".{stem}".endswith(f".{k}")}
                alpha = next(iter(own.values()), settings["lora_alpha"])
                return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        return 1.0

    def _settings(self) -> dict[str, dict[str, Any]]:
        """The adapter's settings by component: `{"unet.lora_alpha": 8, …}` in the file."""
        text, found = self._file.metadata.get(ADAPTER), dict[str, dict[str, Any]]()
        if text is None:
            return found
        what, allowed = f"metadata '{ADAPTER}'", "what diffusers writes: lora_alpha and more, of each component"
        for key, value in members(text, self._file.refused, what).items():
            component, _, name = key.partition(".")
            found.setdefault(component, {})[name] = decoded(value, Any, self._file.refused, what, allowed)
        if not all(map(_is_settings, found.values())):
            raise self._file.refused(f"{what} without alphas that are finite numbers", allowed)
        if any(settings.get("use_dora") for settings in found.values()):
            raise self.refused(next(iter(self._file.entries)), "DoRA")
        return found


def check_weight(subject: str, weight: object) -> None:
    """Raise LoraInvalid where a LoRA's weight is no number from -MAX_WEIGHT to MAX_WEIGHT."""
    number = isinstance(weight, (int, float, np.floating, np.integer)) and not isinstance(weight, bool)
    if not number or not -MAX_WEIGHT <= weight <= MAX_WEIGHT:  # type: ignore[operator]
        raise LoraInvalid(
            f"{subject}, weight", actual=shown(weight), allowed=f"a number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
            remedy="1 is the LoRA as it was trained, less is less of it.",
        )  # fmt: skip


def _is_settings(settings: dict[str, Any]) -> bool:
    """Whether alphas are finite numbers; the rest is not read."""
    pattern = settings.get("alpha_pattern", {})
    return isinstance(pattern, dict) and all(map(_is_finite, (settings.get("lora_alpha"), *pattern.values())))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _parted(key: str) -> tuple[str, str]:
    """A key's stem and which part it is; an empty stem where it is none that is known."""
    for part, endings in (("down", DOWN), ("up", UP), ("alpha", ALPHA)):
        for ending in endings:
            if key.endswith(ending):
                return key.removesuffix(ending), part
    return "", ""
