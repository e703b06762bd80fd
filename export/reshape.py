"""A reshape whose target is a constant in the graph: 0 copies a dimension, −1 is what is left, as ONNX has it.

Traced from torch, the sizes that stay would be read from the tensor and put together again, five nodes for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape)])

    @staticmethod
    def symbolic(graph: Any, x: Any, shape: tuple[int, ...]) -> Any:
        """The ONNX node, for the TorchScript exporter."""
        return graph.op("Reshape", x, graph.op("Constant", value_t=torch.tensor(shape)))


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give x another shape; a 0 keeps x's size at that place, a −1 takes the rest."""
    result: Tensor = _Reshape.apply(x, shape)  # type: ignore[no-untyped-call]
    return result
