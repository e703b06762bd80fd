"""LoRA files of requests → the wire `lora`: A and Bᵀ of every layer in lines, as many as the bundle's rank.

A file's layers are found by the stems that bundle.json lists, so no dialect is known here. Several LoRAs of one request
lie in lines one below the other; lines of zeros fill the rest. What was packed stays, least recently used first out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from engine.binding import Array, DType, Float32Array, Precision
from engine.bundle import Bundle
from engine.errors import LoraInvalid, RequestInvalid, shown
from engine.lorafile import LoraFile, Pair, check_weight
from engine.schema import LoraInputs, LoraLayer

_LOGGER = logging.getLogger("zturbo.loras")
Chosen = tuple[tuple[str, float], ...]
"""The LoRAs of one sample: (file, weight) each."""
TEXT = ("lora_te", "text_encoder")
"""How the stems of text encoders' layers begin."""
MAX_LORAS = 16
"""Of one request."""
MAX_BYTES = 512 << 20
"""Of packed files that are kept; the last one is kept whatever its size."""
MAX_BATCHES = 4
"""Arrays of whole batches that are kept, as many as shapes (runtime/memory.py)."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A file at one weight. lines: (its rank, size), of the wire's type. sha256: of the file."""

    lines: Array
    sha256: str


def chosen_loras(value: object) -> Chosen:
    """What a request names as its LoRAs: (file, weight), or a file alone. Raises RequestInvalid."""
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    values = tuple(islice(value, MAX_LORAS + 1)) if listed else ()  # type: ignore[call-overload]
    if not listed or len(values) > MAX_LORAS:  # the length of a range may exceed what Python counts
        raise _not_chosen(shown(value))
    found = []
    for one in values:
        pair = (one, 1.0) if isinstance(one, (str, Path)) else one
        pair = tuple(islice(pair, 3)) if isinstance(pair, Sequence) else ()
        if len(pair) != 2 or not isinstance(pair[0], (str, Path)) or not str(pair[0]):
            raise _not_chosen(shown(one))
        try:
            check_weight(str(pair[0]), pair[1])
        except LoraInvalid as error:
            raise RequestInvalid(
                "request, loras", actual=f"a weight of {error.actual}", allowed=error.allowed, remedy=error.remedy
            ) from error
        found.append((str(pair[0]), float(pair[1])))
    return tuple(found)


def _not_chosen(actual: str) -> RequestInvalid:
    return RequestInvalid(
        "request, loras", actual=actual, allowed=f"up to {MAX_LORAS} pairs of a file and a weight",
        remedy='Write loras=[("style.safetensors", 0.8)].',
    )  # fmt: skip


class Loras:
    """What one bundle takes, None where it takes none. dtype: of the wire."""

    def __init__(self, inputs: LoraInputs | None, dtype: DType) -> None:
        self._inputs, self._dtype = inputs, dtype
        layers = () if inputs is None else inputs.layers
        self._by_stem = {stem: layer for layer in layers for stem in layer.aliases}
        self._kept: OrderedDict[tuple[str, float, int, int], Packed] = OrderedDict()
        self._batches: OrderedDict[tuple[tuple[int, ...], ...], tuple[list[Packed], Array]] = OrderedDict()
        self._warned: set[str] = set()

    @classmethod
    def of(cls, bundle: Bundle, precision: Precision) -> Loras:
        """Those of a bundle, for the graphs of one precision."""
        inputs = bundle.lora_inputs
        return cls(inputs, "float32" if inputs is None else inputs.wire(precision)[0])

    def check(self, chosen: Chosen, bundle: str) -> tuple[Packed, ...]:
        """Read and pack the LoRAs of one request. Raises LoraInvalid, or RequestInvalid where they do not fit.

        bundle: its name.
        """
        if not chosen:
            return ()
        if self._inputs is None:
            raise RequestInvalid(
                "request, loras", actual=f"{len(chosen)} of them", allowed=f"none: bundle '{bundle}' does not take any",
                remedy="Run `zturbo export SOURCE --lora-rank 16`, or fuse them with `--lora FILE`.",
            )  # fmt: skip
        found = tuple(self._packed(Path(path), weight, self._inputs) for path, weight in chosen)
        ranks = [len(packed.lines) for packed in found]
        if sum(ranks) > self._inputs.rank:
            raise RequestInvalid(
                "request, loras", actual=f"ranks of {' + '.join(map(str, ranks))}",
                allowed=f"{self._inputs.rank} in all, the rank that bundle '{bundle}' was exported with",
                remedy=f"Use fewer at a time, or run `zturbo export SOURCE --lora-rank {sum(ranks)}`.",
            )  # fmt: skip
        return found

    def rows(self, rows: Sequence[tuple[Packed, ...]]) -> Array | None:
        """(rows, rank, size): what each denoiser row gets; None where the bundle takes none.

        Equal rows give the same array again, which is read-only: whoever wrote it once knows what it holds.
        """
        if self._inputs is None:
            return None
        key = tuple(tuple(map(id, row)) for row in rows)
        if key not in self._batches:
            while len(self._batches) >= MAX_BATCHES:
                self._batches.popitem(last=False)
            array = np.zeros((len(rows), self._inputs.rank, self._inputs.size), self._dtype)
            for target, row in zip(array, rows, strict=True):
                if row:
                    lines = np.concatenate([packed.lines for packed in row])
                    target[: len(lines)] = lines
            array.flags.writeable = False
            self._batches[key] = [packed for row in rows for packed in row], array  # kept, so that no id comes again
        self._batches.move_to_end(key)
        return self._batches[key][1]

    def clear(self) -> None:
        """Drop everything that was packed."""
        self._kept.clear()
        self._batches.clear()

    def _packed(self, path: Path, weight: float, inputs: LoraInputs) -> Packed:
        try:
            stat = path.stat()
        except (OSError, ValueError) as error:
            raise LoraInvalid(
                str(path), actual="no such file", allowed="a .safetensors file", remedy="Check the path."
            ) from error
        key = str(path), weight, stat.st_size, stat.st_mtime_ns
        if key not in self._kept:
            file = LoraFile(path)
            self._kept[key] = Packed(self._lines(file, weight, inputs), file.sha256)
            while len(self._kept) > 1 and sum(one.lines.nbytes for one in self._kept.values()) > MAX_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _lines(self, file: LoraFile, weight: float, inputs: LoraInputs) -> Array:
        """(rank of the file, size): the columns of layers that it does not name stay zero."""
        layers = self._layers(file)
        first = max(layers, key=file.rank)
        rank = file.rank(first)
        if not 1 <= rank <= inputs.rank:
            raise file.refused(
                file.first_key(first), f"rank {rank}", f"1 to {inputs.rank}, which the bundle was exported with",
                f"Run `zturbo export SOURCE --lora-rank {rank}`, or fuse it with `--lora`.",
            )  # fmt: skip
        lines = np.zeros((rank, inputs.size), self._dtype)
        for stem, layer in layers.items():
            self._fill(lines, file, file.pair(stem), layer, weight)
        return lines

    def _layers(self, file: LoraFile) -> dict[str, LoraLayer]:
        """The layer of each stem; those of text encoders are told once and left out."""
        text = [stem for stem in file.stems if stem.startswith(TEXT)]
        found, names = dict[str, LoraLayer](), set[str]()
        for stem in file.stems:
            layer = self._by_stem.get(stem)
            if layer is not None and layer.name in names:
                raise file.refused(file.first_key(stem), f"a second pair for {layer.name}", "one pair to a layer")
            if layer is not None:
                found[stem] = layer
                names.add(layer.name)
            elif stem not in text:
                raise file.refused(
                    file.first_key(stem), "no layer that takes LoRA inputs",
                    "the linear layers of this model's transformer blocks",
                    "Is it for another model? LoRAs of other layers can be fused: `zturbo export SOURCE --lora FILE`.",
                )  # fmt: skip
        if not found:
            raise file.refused(
                file.first_key(file.stems[0]), "layers of text encoders alone", "layers of the denoiser",
                "Fuse it: `zturbo export SOURCE --lora FILE`.",
            )  # fmt: skip
        if text and file.sha256 not in self._warned:
            self._warned.add(file.sha256)
            _LOGGER.warning(
                "%s: its %d layers of text encoders (%s …) are left out; fuse the file with `zturbo export SOURCE "
                "--lora FILE` to have them", file.path, len(text), file.first_key(text[0]),
            )  # fmt: skip
        return found

    def _fill(self, lines: Array, file: LoraFile, pair: Pair, layer: LoraLayer, weight: float) -> None:
        """Write a pair's columns: A, and (weight · scale · B)ᵀ."""
        down, up = _flat(pair.down), _flat(pair.up)
        if down.shape != (pair.rank, layer.inputs) or up.shape != (layer.outputs, pair.rank):
            raise file.refused(
                pair.key, f"matrices of {pair.down.shape} and {pair.up.shape}",
                f"({pair.rank}, {layer.inputs}) and ({layer.outputs}, {pair.rank}) for {layer.name}",
                "It was made for another model.",
            )  # fmt: skip
        with np.errstate(over="ignore", invalid="ignore"):
            up = up * np.float32(pair.scale * weight)
            down, up = _balanced(down, up)
            lines[: pair.rank, layer.down : layer.down + layer.inputs] = down
            lines[: pair.rank, layer.up : layer.up + layer.outputs] = up.T
        own = slice(layer.down, layer.down + layer.inputs), slice(layer.up, layer.up + layer.outputs)
        if not all(np.isfinite(lines[: pair.rank, columns]).all() for columns in own):
            raise file.refused(
                pair.key, f"values that {self._dtype} does not hold, by weight {weight:g}", "finite values",
                "Use a lower weight.",
            )  # fmt: skip


def _flat(matrix: Float32Array) -> Float32Array:
    """A 1×1 convolution's kernel as a matrix; anything else as it is."""
    return matrix.reshape(matrix.shape[:2]) if matrix.shape[2:] == (1, 1) else matrix


def _balanced(down: Float32Array, up: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Both with magnitudes of one order, by a power of two, so the product is the same: small values of fp16 have few
    digits, and B is often a hundredth of A.
    """
    most = float(np.abs(down).max()), float(np.abs(up).max())
    if not (0 < most[0] < np.inf and 0 < most[1] < np.inf):
        return down, up
    factor = np.float32(2.0 ** np.clip(round(np.log2(most[1] / most[0]) / 2), -60, 60))
    return down * factor, up / factor
