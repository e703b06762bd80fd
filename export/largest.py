"""The largest magnitude that a module's run holds anywhere, and whether fp16 can hold it too.

fp16 ends at 65504. ONNX Runtime's CPU provider computes fp16 graphs in fp32, so a check there says nothing of it; an
fp32 run that is watched operation by operation does. Knows neither families nor how a graph is written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.errors import ExportMismatch
from export.graph import GraphSpec

_LOGGER = logging.getLogger("zturbo.export")
GREATEST = 65504.0
"""The greatest number of fp16."""
COMFORT = 3e4
"""What a recorded run may hold without a word: another prompt, picture or size may need twice of it."""
ENDLESS = 1e38
MASKED = -1e37
"""What is lower stands for −∞ in an attention mask, and is fp16's own lowest number in fp16."""
VAE_REMEDY = ", or set force_upcast to true in vae/config.json, which folds the VAE so that fp16 holds it"
ISLANDS = ("RMSNorm", "Qwen3RMSNorm")
"""Modules that square what they get, in fp32: diffusers' and transformers'."""
BLOCK = 1 << 24
"""Scores of an attention that are computed at a time."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """A magnitude, and the path of the module whose run holds it; empty for the graph's own operations."""

    value: float
    module: str


class Ranges:
    """The extreme of each graph, over all of its runs that were watched; found: by graph."""

    def __init__(self) -> None:
        self.found: dict[str, Extreme] = {}

    @contextmanager
    def watch(self, spec: GraphSpec) -> Iterator[None]:
        """Within the block every result of torch's operations counts for this graph, unless it stays in fp32 anyway."""
        if spec.exact:
            yield
            return
        seen = _Watch(self.found.get(spec.name, Extreme(0.0, "")))
        with _followed(spec.module, seen), seen:
            yield
        self.found[spec.name] = seen.extreme

    def values(self) -> dict[str, float]:
        """The magnitudes alone, as bundle.json has them: to three digits, and JSON has no infinity."""
        return {name: float(f"{min(one.value, ENDLESS):.3g}") for name, one in self.found.items()}


def check_range(found: Mapping[str, Extreme], specs: Iterable[GraphSpec]) -> None:
    """Warn of graphs that come near the end of fp16, by the log; specs: those of the fp16 variant.

    Graphs of it that compute in fp32 are not judged. Raises ExportMismatch for one that goes past it.
    """
    for spec in specs:
        extreme = found.get(spec.name)
        if extreme is None or spec.precision != "fp16":
            continue
        place = extreme.module or "the graph itself"
        if not extreme.value <= GREATEST:
            raise ExportMismatch(
                f"{spec.name}.onnx (fp16), {place}", actual=f"a value of {extreme.value:.3g} in the fp32 run",
                allowed=f"at most {GREATEST:g}, the greatest number of fp16",
                remedy=f"Export this model with --precision fp32{VAE_REMEDY if 'vae.' in place else ''}.",
            )  # fmt: skip
        if extreme.value > COMFORT:
            _LOGGER.warning(
                "graph '%s' holds %.3g at %s, and fp16 ends at %g: other inputs may overflow it; --precision fp32 "
                "has no such end", spec.name, extreme.value, place, GREATEST,
            )  # fmt: skip


class _Watch(TorchFunctionMode):
    """Sees every operation that Python calls; path: the names of the modules that run, the innermost last.

    Within one of ISLANDS, which computes in fp32 whatever it is given, what comes out is all that counts.
    """

    def __init__(self, extreme: Extreme) -> None:
        super().__init__()
        self.extreme = extreme
        self.path: list[str] = []
        self._islands = 0

    def enter(self, name: str, module: nn.Module) -> None:
        """A module begins to run."""
        self.path.append(name)
        self._islands += _is_island(module)

    def leave(self, module: nn.Module, output: Any) -> None:
        """It ends."""
        if _is_island(module):
            self._islands -= 1
            self._count(magnitude(output))
        self.path.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run it, and look at what it made."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._scores(*args, **kwargs)
        result = func(*args, **kwargs)
        known = {arg.data_ptr() for arg in args if isinstance(arg, Tensor)}
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor) and one.is_floating_point() and one.numel() and one.data_ptr() not in known:
                self._count(magnitude(one))
        return result

    def _count(self, value: float) -> None:
        if not self._islands and not value <= self.extreme.value:  # NaN too
            self.extreme = Extreme(value if math.isfinite(value) else math.inf, self.path[-1] if self.path else "")

    def _scores(self, query: Tensor, key: Tensor, *_: Any, scale: float | None = None, **__: Any) -> None:
        """What goes into the softmax, which torch's fused kernel does not show; unless a bound of it is less already.

        query: (…, heads, N, D). key: (…, heads or a divisor of them, M, D).
        """
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        longest = [float(torch.linalg.vector_norm(one, dim=-1).max()) for one in (query, key)]
        if factor * longest[0] * longest[1] <= self.extreme.value:  # |q·k| ≤ ‖q‖‖k‖
            return
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        rows, columns = query.flatten(0, -3), key.flatten(0, -3).transpose(1, 2)
        block = max(1, BLOCK // columns.shape[-1])
        for row, column in zip(rows, columns, strict=True):
            for part in row.split(block):
                self._count(factor * magnitude(part @ column))


def magnitude(tensor: Tensor) -> float:
    """The largest |x|; what stands for −∞ in a mask does not count, and a NaN is NaN."""
    least, most = (float(one) for one in torch.aminmax(tensor.detach()))
    if least <= MASKED:
        least = float(tensor.masked_fill(tensor <= MASKED, 0).min())
    return math.nan if math.isnan(least) or math.isnan(most) else max(abs(least), abs(most))


def _is_island(module: nn.Module) -> bool:
    return type(module).__name__ in ISLANDS


@contextmanager
def _followed(module: nn.Module, seen: _Watch) -> Iterator[None]:
    """Within the block `seen` is told which submodules run."""
    handles = []
    for name, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(lambda child, _, name=name: seen.enter(name, child)))
        handles.append(child.register_forward_hook(lambda child, _, output: seen.leave(child, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
