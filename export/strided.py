"""A convolution that halves a picture, with its padding in itself. Knows no other layer."""

from __future__ import annotations

from diffusers.models.downsampling import Downsample2D
from torch import Tensor, nn

from export.phases import conv2d


class StridedConv(nn.Module):
    """diffusers' Downsample2D of padding 0: a row of zeros below and a column on the right, then stride 2.

    Traced as diffusers writes it, the padding is an operation of its own whose amounts are computed from shapes: a VAE
    encoder that TensorRT 8.6 had not built after 900 s at 512², where the decoder, in two parts, took 360.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """x: (B, C, H, W). Returns (B, D, ⌊H/2⌋, ⌊W/2⌋)."""
        return conv2d(x, self.conv.weight, self.conv.bias, (0, 0, 1, 1), stride=2)


def pad_in_convolutions(module: nn.Module) -> None:
    """Put StridedConv in the place of every Downsample2D of padding 0; same sums, in place."""
    for name, child in module.named_children():
        if isinstance(child, Downsample2D) and fits(child):
            setattr(module, name, StridedConv(child.conv))
        else:
            pad_in_convolutions(child)


def fits(part: Downsample2D) -> bool:
    """Whether it is padding on two sides and one convolution of stride 2."""
    conv = part.conv
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        return False
    plain = conv.stride == (2, 2) and conv.padding == (0, 0) and conv.groups == 1 and conv.kernel_size == (3, 3)
    return plain and part.use_conv and part.padding == 0 and part.norm is None
