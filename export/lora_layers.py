"""Layers that add a low-rank product, given with every call, to what their weights make: y = W·x + b + B·(A·x).

A and Bᵀ of all layers lie side by side in one tensor (rows, rank, size): a layer takes two slices of it, and its
products are batched ones of three axes. A LoRA of zeros adds zeros, so the result is the base's, bit for bit. Does not
know which layers of a model are such, nor where their matrices begin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from export.reshape import reshape


class LoraWire:
    """The tensor (rows, rank, size) of the call that is running; the layers of a model share one."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> LoraWire:
        return self

    def columns(self, begin: int, count: int) -> Tensor:
        """(rows, rank, count)."""
        assert self.value is not None, "a layer with LoRA inputs was called without them"
        return self.value[:, :, begin : begin + count]


@dataclass(frozen=True)
class Slot:
    """Where a layer's A (rank, inputs) and Bᵀ (rank, outputs) begin in each line, and what their product counts."""

    wire: LoraWire
    down: int
    up: int
    scale: float = 1.0


class LoraLinear(nn.Linear):
    """A linear layer and its slot; the weights are the base's own. x: (rows, N, inputs)."""

    def __init__(self, base: nn.Linear, slot: Slot) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.slot = base.weight, base.bias, slot

    def forward(self, x: Tensor) -> Tensor:
        """(rows, N, outputs)."""
        slot = self.slot
        low = x @ slot.wire.columns(slot.down, self.in_features).transpose(1, 2)
        low = low if slot.scale == 1 else low * slot.scale
        return super().forward(x) + low @ slot.wire.columns(slot.up, self.out_features)


class LoraPointwise(nn.Conv2d):
    """A 1×1 convolution and its slot; the weights are the base's own. x: (rows, inputs, H, W)."""

    def __init__(self, base: nn.Conv2d, slot: Slot) -> None:
        super().__init__(base.in_channels, base.out_channels, 1, bias=base.bias is not None, device="meta")
        self.weight, self.bias, self.slot = base.weight, base.bias, slot

    def forward(self, x: Tensor) -> Tensor:
        """(rows, outputs, H, W)."""
        slot, base = self.slot, super().forward(x)
        low = slot.wire.columns(slot.down, self.in_channels) @ reshape(x, (0, 0, -1))
        return base + (slot.wire.columns(slot.up, self.out_channels).transpose(1, 2) @ low).reshape_as(base)


def with_slot(layer: nn.Module, slot: Slot) -> nn.Module:
    """The layer that computes the same, plus what lies in the slot."""
    if isinstance(layer, nn.Conv2d):
        return LoraPointwise(layer, slot)
    assert isinstance(layer, nn.Linear)
    return LoraLinear(layer, slot)


def slot_of(layer: nn.Module, *, scale: float = 1.0, first: int = 0) -> Slot | None:
    """The slot of a layer that computes `scale` times another's outputs, from the `first` on; None without one."""
    slot: Slot | None = getattr(layer, "slot", None)
    return None if slot is None else replace(slot, scale=slot.scale * scale, up=slot.up + first)
