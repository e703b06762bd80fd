"""What a build of the fake TensorRT is told, and what it tells of its layers.

Every node is a layer, for each optimization profile anew; a normalization passes for an attention in one kernel.
"""

from __future__ import annotations

import json
from typing import Any

import onnx

NORMS = ("LayerNormalization", "InstanceNormalization")


class TimingCache:
    """One timed layer a line, under the version; damaged where it is something else."""

    def __init__(self, version: str, raw: bytes) -> None:
        head, *lines = raw.decode(errors="replace").splitlines() or [version]
        self.version, self.timed = head, set(lines)

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        if other.version != self.version:
            return False
        self.timed |= other.timed
        return True

    def serialize(self) -> memoryview:
        return memoryview("\n".join([self.version, *sorted(self.timed)]).encode())


class Config:
    def __init__(self, module: Any) -> None:
        self.module, self.flags, self.profiles, self.capabilities = module, [], [], {}
        self.num_compute_capabilities = 0
        self.sharing = False
        self.profiling_verbosity: Any = None
        self.builder_optimization_level = 3
        self.pools: dict[str, int] = {}
        self.cleared: list[str] = []
        self.timings: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, raw: bytes) -> TimingCache:
        return TimingCache(self.module.__version__, raw)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.version != self.module.__version__:
            return False
        self.timings = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timings

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def set_preview_feature(self, feature: Any, value: bool) -> None:
        self.sharing = value

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capabilities[index] = capability.name
        return 0 <= index < self.num_compute_capabilities


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            raise ValueError(f"{name}: {low} {opt} {high}")
        self.shapes[name] = (tuple(low), tuple(opt), tuple(high))


def tactic_of(node: onnx.NodeProto) -> str:
    return "_gemm_mha_v2_0x9b4c" if node.op_type in NORMS else "sm80_kernel"


def text_of(node: onnx.NodeProto, place: int, profile: int) -> str:
    """A layer as RTX writes it; of all names only the inputs' say which profile it is for."""
    suffix = f" [profile {profile}]" if profile else ""
    tensors = [f"{{ Name: {name}, Dimensions: [2,4], Datatype: %s, Format: (Linear) any }}" for name in node.output]
    return (
        f"Name: {node.op_type}_myl{profile}_{place}, LayerType: kgen, Inputs: [ {tensors[0] % 'Float'}{suffix}], "
        f"Constants: [], Outputs: [ {tensors[0] % 'Half'}], TacticName: {tactic_of(node)}, StreamId: 0, Metadata: "
    )


class Inspector:
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def get_engine_information(self, form: Any) -> str:
        assert form.name == "JSON"
        outputs = [{"Name": "any", "Format/Datatype": "Row major linear FP16 format"}]
        layers = [
            {
                "Name": f"{node.op_type}{f' [profile {k}]' if k else ''}",
                "Outputs": outputs,
                "TacticName": tactic_of(node),
            }
            for k in range(len(self.engine.head["profiles"]))
            for node in self.engine.model.graph.node
        ]
        return json.dumps({"Layers": layers}).replace("Row", "\x01Row")  # 8.6 leaves control characters in it
