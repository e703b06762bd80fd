"""What a build shows of the plan that it made: layers, attentions in one kernel, types, scratch.

TensorRT-RTX builds where the plan cannot be opened, so its facts come from the VERBOSE log, which lists every layer at
the end; elsewhere the plan is opened and its inspector asked. A fact that is not found is None; no build fails for it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.dialect import Dialect
from engine.plan import Facts

_WORDS = {
    "float": "float32", "fp32": "float32", "float32": "float32", "half": "float16", "fp16": "float16",
    "float16": "float16", "bfloat16": "bfloat16", "bf16": "bfloat16", "int8": "int8", "int32": "int32",
    "int64": "int64", "bool": "bool", "uint8": "uint8", "fp8": "float8",
}  # fmt: skip
"""TensorRT's words for types, in small letters, as ours."""
_FUSED = re.compile(r"(?<![a-z])f?mha(?![a-z])|flash_?att", re.IGNORECASE)
"""In a kernel's name, a whole attention: RTX `_gemm_mha_v2_0x9b4c…`, TensorRT `fmha_v2_flash_attention_fp16_…`."""
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: .*?, Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>[^,]*),"
)
_DATATYPE = re.compile(r"Datatype: ([A-Za-z0-9]+)")
_PROFILE = re.compile(r"\[profile ([0-9]+)\]")
_SUBGRAPH = re.compile(r"_(myl[0-9]+)_[0-9]+$")
_ACTIVATIONS = re.compile(r"Total Activation Memory: ([0-9]+)")


@dataclass(slots=True)
class _Group:
    """The layers of one compiled subgraph, counted. profile: of the optimization profiles, the one it is for."""

    profile: int = 0
    layers: int = 0
    fused: int = 0
    types: Counter[str] = field(default_factory=Counter)


class Layers:
    """Layers as they are told, counted by optimization profile: each profile has layers of its own.

    Only the names of some say which profile they are for; those of one subgraph (`myl1`) are for the same.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def add(self, name: str, tactic: str, types: Iterable[str], text: str) -> None:
        """Count a layer. types: of its outputs, in TensorRT's words; one without outputs is a mark and no layer."""
        profile, subgraph = _PROFILE.search(text), _SUBGRAPH.search(name)
        group = self._groups.setdefault(subgraph[1] if subgraph else f"profile {profile and profile[1]}", _Group())
        if profile is not None:
            group.profile = int(profile[1])
        words = {_WORDS.get(word.lower(), word.lower()) for word in types}
        if words:
            group.layers += 1
            group.types.update(words)
            group.fused += bool(_FUSED.search(tactic or ("" if "/" in name else name)))

    def facts(self) -> Facts:
        """Of the optimization profile with the fewest fused attentions; empty where no layer was told."""
        profiles: dict[int, _Group] = {}
        for group in self._groups.values():
            total = profiles.setdefault(group.profile, _Group())
            total.layers += group.layers
            total.fused += group.fused
            total.types.update(group.types)
        if not any(total.layers for total in profiles.values()):
            return Facts()
        worst = min(profiles.values(), key=lambda total: total.fused)
        return Facts(layers=worst.layers, fused_attentions=worst.fused, types=dict(sorted(worst.types.items())))


class BuildLog:
    """Reads a build's messages one by one and keeps nothing but counts."""

    def __init__(self) -> None:
        self._layers = Layers()
        self._scratch_bytes: int | None = None

    def read(self, message: str) -> None:
        """Take what a message tells; most tell nothing. Never raises, for TensorRT's own threads call it."""
        found = _ACTIVATIONS.search(message)
        if found is not None:  # once for each optimization profile
            self._scratch_bytes = max(self._scratch_bytes or 0, int(found[1]))
        elif message.startswith("Layers:"):
            for line in message.splitlines():
                match = _LAYER.match(line)
                if match is not None:
                    self._layers.add(match["name"], match["tactic"], _DATATYPE.findall(match["outputs"]), line)

    def facts(self) -> Facts:
        """What was found; scratch_bytes of the optimization profile that needs most."""
        found = self._layers.facts()
        return Facts(
            layers=found.layers, fused_attentions=found.fused_attentions, types=found.types,
            scratch_bytes=self._scratch_bytes,
        )  # fmt: skip


def facts_from_plan(dialect: Dialect, plan: Any, logger: Any) -> Facts | None:
    """The facts of a plan, by opening it on this machine's GPU; None where that does not work."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError, AttributeError, KeyError, StopIteration):
        engine = dialect.trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is not None:
            found = _inspected(dialect, engine)
            return Facts(
                layers=found.layers, fused_attentions=found.fused_attentions, types=found.types,
                scratch_bytes=dialect.scratch_bytes(engine),
            )  # fmt: skip
    return None


def _inspected(dialect: Dialect, engine: Any) -> Facts:
    text = engine.create_engine_inspector().get_engine_information(dialect.trt.LayerInformationFormat.JSON)
    layers = Layers()
    for layer in json.loads(text, strict=False).get("Layers", []):  # 8.6's holds control characters
        if isinstance(layer, dict):  # a bare name where the plan was built without descriptions
            tactic = str(layer.get("TacticName", ""))
            layers.add(str(layer["Name"]), tactic, _types(layer.get("Outputs", [])), str(layer))
    return layers.facts()


def _types(outputs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The types of a layer's outputs: `Half`, or among the words of a format (`Row major linear FP16 format`)."""
    for output in outputs:
        words = str(output.get("Datatype") or output.get("Format/Datatype", "")).split()
        yield next((word for word in words if word.lower() in _WORDS), "unknown")
