"""Convolutions by phases: each output pixel's place within a 2×2 cell decides which weights it sees.

Two forms, both exact up to rounding: a 3×3 convolution behind nearest-neighbour upsampling needs only 2×2 weights
per phase, 4/9 of the products; a convolution to 3 or 4 channels, padded to a whole vector by every CPU library,
computes the four phases as channels instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from export.reshape import reshape

VECTOR = 16
"""Output channels that a convolution on a CPU computes at once (AVX-512, float32)."""
Pads = tuple[int, int, int, int]
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class PhaseUpsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3×3 convolution, as four 2×2 convolutions of the small image.

    With weights w0, w1, w2 along an axis, output 2k sees x[k−1] by w0 and x[k] by w1 + w2; output 2k + 1 sees x[k] by
    w0 + w1 and x[k+1] by w2. Where an odd size cuts the last row off the upsampled image, what lies below the row
    before it is padding and not x[k]: the last row and column are therefore computed as diffusers does.
    """

    def __init__(self, module: Upsample2D) -> None:
        super().__init__()
        self.conv = module.conv
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in phase_weights(module.conv.weight))

    @staticmethod
    def fits(module: Upsample2D) -> bool:
        """Whether the module is upsampling and a 3×3 convolution, and nothing else."""
        conv = getattr(module, "conv", None)
        plain = module.interpolate and module.use_conv and not module.use_conv_transpose and module.norm is None
        return plain and isinstance(conv, nn.Conv2d) and is_plain(conv)

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """x: (B, C, H, W). output_size: (2H or 2H − 1, 2W or 2W − 1), or None for twice the size."""
        pads = [(1 - a, 1 - b, a, b) for a, b in PHASES]
        phases = [conv2d(x, w, self.conv.bias, pad) for w, pad in zip(self.weights, pads, strict=True)]
        whole = interleave(phases)
        return whole if output_size is None else self._cut(x, whole, output_size)

    def _cut(self, x: Tensor, whole: Tensor, output_size: Any) -> Tensor:
        upsampled = F.interpolate(x, size=output_size, mode="nearest")
        height, width = upsampled.shape[2] - 1, upsampled.shape[3] - 1
        row = conv2d(upsampled[:, :, -2:], self.conv.weight, self.conv.bias, (0, 1, 1, 1))
        column = conv2d(upsampled[..., -2:], self.conv.weight, self.conv.bias, (1, 0, 1, 1))
        return torch.cat([torch.cat([whole[:, :, :height, :width], column[:, :, :-1]], 3), row], 2)


class PhaseConv(nn.Module):
    """A 3×3 convolution to few channels, as a 4×4 one of stride 2 to four times as many."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        kernel = torch.zeros(conv.out_channels, 4, conv.in_channels, 4, 4)
        for phase, (a, b) in enumerate(PHASES):
            kernel[:, phase, :, a : a + 3, b : b + 3] = conv.weight
        self.weight = nn.Parameter(kernel.flatten(0, 1), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.repeat_interleave(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). An odd size gets a row or column too many, which is cut off."""
        cells = conv2d(x, self.weight, self.bias, (1, 1, 2, 2), stride=2)
        return F.pixel_shuffle(cells, 2)[:, :, : x.shape[2], : x.shape[3]]


def phases_pay(conv: nn.Conv2d) -> bool:
    """Whether four phases of a convolution fit into one vector of output channels."""
    return is_plain(conv) and 4 * conv.out_channels <= VECTOR


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether it is a 3×3 convolution with a bias, padded with one zero on each side, and nothing else."""
    ones = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    return ones and conv.kernel_size == (3, 3) and conv.padding_mode == "zeros" and conv.bias is not None


def phase_weights(weight: Tensor) -> list[Tensor]:
    """The 2×2 weights of each of PHASES from 3×3 ones; sums are taken in float64."""
    w = weight.double()
    rows = [
        torch.stack(pair, 2) for pair in ((w[:, :, 0], w[:, :, 1] + w[:, :, 2]), (w[:, :, 0] + w[:, :, 1], w[:, :, 2]))
    ]
    both = [[(r[..., 0], r[..., 1] + r[..., 2]), (r[..., 0] + r[..., 1], r[..., 2])] for r in rows]
    return [torch.stack(both[a][b], 3).to(weight.dtype) for a, b in PHASES]


def interleave(phases: list[Tensor]) -> Tensor:
    """Four (B, C, H, W), in the order of PHASES, as one (B, C, 2H, 2W).

    By concatenation along a new last axis: on ONNX Runtime's CPU 2.2 times as fast as DepthToSpace, and threaded.
    """
    top, bottom = (reshape(torch.stack(pair, -1), (0, 0, 0, -1)) for pair in (phases[:2], phases[2:]))
    return torch.stack([top, bottom], 3).flatten(2, 3)


class _Conv2d(torch.autograd.Function):
    """A convolution with its own padding on each side, which torch can only say with a second operation."""

    @staticmethod
    def forward(_: Any, x: Tensor, weight: Tensor, bias: Tensor, pads: Pads, stride: int) -> Tensor:
        top, left, bottom, right = pads
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, bias: Any, pads: Pads, stride: int) -> Any:
        """The ONNX node, for the TorchScript exporter."""
        kernel = weight.type().sizes()[2:]
        return graph.op("Conv", x, weight, bias, kernel_shape_i=kernel, pads_i=list(pads), strides_i=[stride, stride])


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads, stride: int = 1) -> Tensor:
    """F.conv2d. pads: rows and columns of zeros at the top, left, bottom and right."""
    assert bias is not None
    result: Tensor = _Conv2d.apply(x, weight, bias, pads, stride)  # type: ignore[no-untyped-call]
    return result
