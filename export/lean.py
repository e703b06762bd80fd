"""The same sums in fewer and cheaper operations, swapped into a diffusers module just before it is traced.

For the fp32 variant, which ONNX Runtime runs on CPUs; the fp16 graphs keep diffusers' own form. Every swap is exact
up to rounding: export/check.py compares the graph with the module as diffusers wrote it. Knows no model family.
The figures are for models/emoji on one core (Zen 4), where convolutions and products already run at the peak.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from export.lora_layers import slot_of, with_slot
from export.phases import PhaseConv, PhaseUpsample, phases_pay
from export.reshape import reshape


def make_lean(module: nn.Module) -> None:
    """Swap what has a cheaper form, in place, at every depth; a second call changes nothing."""
    for parent in list(module.modules()):
        if isinstance(parent, Attention) and is_plain(parent) and not getattr(parent.processor, "stays", False):
            parent.to_q = scaled(parent.to_q, parent.scale)
            parent.set_processor(LeanAttention())
        elif isinstance(parent, Transformer2DModel) and isinstance(getattr(parent, "proj_in", None), nn.Conv2d):
            parent.proj_in, parent.proj_out = (
                linear_from_pointwise(parent.proj_in),
                linear_from_pointwise(parent.proj_out),
            )
            parent.use_linear_projection = True
        for name, child in parent.named_children():
            swapped = lean_form(child)
            if swapped is not None:
                setattr(parent, name, swapped)


def lean_form(module: nn.Module) -> nn.Module | None:
    """The cheaper module that takes this one's place, or None."""
    if isinstance(module, GEGLU):
        return LeanGEGLU(module)
    if isinstance(module, nn.GroupNorm) and module.affine:
        return ChannelNorm(module) if module.num_groups == module.num_channels else LeanGroupNorm(module)
    if isinstance(module, Upsample2D) and PhaseUpsample.fits(module):
        return PhaseUpsample(module)
    if isinstance(module, nn.Conv2d) and phases_pay(module):
        return PhaseConv(module)
    return None


def is_plain(attention: Attention) -> bool:
    """Whether an attention is softmax(s·q·kᵀ)·v with projections, and nothing else that LeanAttention would lose."""
    extras = ("spatial_norm", "norm_q", "norm_k", "add_k_proj", "norm_cross")
    return not any(getattr(attention, name, None) for name in extras) and attention.rescale_output_factor == 1


class LeanAttention:
    """Attention whose reshapes are constants and whose 1/√d is in to_q's weights.

    Traced as diffusers writes it, one attention is about 60 nodes, 45 of which compute shapes.
    """

    stays = True
    """Whether make_lean leaves an attention with this processor as it is."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 - diffusers passes it; only a spatial norm would use it
    ) -> Tensor:
        """hidden_states: (B, N, C), or (B, C, H, W) in a VAE; encoder_hidden_states: (B, M, D). Returns (B, N, C)…"""
        assert attention_mask is None
        residual, x = hidden_states, hidden_states
        if residual.ndim == 4:
            x = reshape(x, (0, 0, -1)).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        heads = (0, -1, attn.heads, attn.inner_dim // attn.heads)
        q = reshape(attn.to_q(x), heads).transpose(1, 2)
        k = reshape(attn.to_k(source), heads).permute(0, 2, 3, 1)
        v = reshape(attn.to_v(source), heads).transpose(1, 2)
        x = torch.softmax(q @ k, -1) @ v
        x = attn.to_out[0](reshape(x.transpose(1, 2), (0, -1, attn.inner_dim)))
        if residual.ndim == 4:
            x = x.transpose(1, 2).reshape_as(residual)
        result: Tensor = x + residual if attn.residual_connection else x
        return result


class LeanGEGLU(nn.Module):
    """hidden·GELU(gate) with two projections: slicing one result in two would copy both halves."""

    def __init__(self, module: GEGLU) -> None:
        super().__init__()
        self.hidden, self.gate = (linear_part(module.proj, half) for half in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C). Returns (B, N, D)."""
        hidden: Tensor = self.hidden(x)
        return hidden * F.gelu(self.gate(x))


BATCH_EPS = 2.0**-10
"""torch 2.11 takes no eps of 0; 1 − 2⁻¹⁰ and 2⁻¹⁰ are exact in fp32, and so is their sum."""


class LeanGroupNorm(nn.Module):
    """GroupNorm whose scale and bias are one pass, a BatchNormalization of mean 0 and variance + eps 1, instead of two.

    1.3 times as fast. LayerNormalization in InstanceNormalization's place would be 0.4 times as fast on one core.
    """

    unit: Tensor
    zero: Tensor
    variance: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups
        self.register_buffer("unit", torch.ones_like(norm.weight))
        self.register_buffer("zero", torch.zeros_like(norm.weight))
        self.register_buffer("variance", torch.full_like(norm.weight, 1 - BATCH_EPS))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, …)."""
        unit, zero = self.unit[: self.groups], self.zero[: self.groups]
        normal = F.instance_norm(reshape(x, (0, self.groups, -1)), weight=unit, bias=zero, eps=self.eps).reshape_as(x)
        return F.batch_norm(normal, self.zero, self.variance, self.weight, self.bias, eps=BATCH_EPS)


class ChannelNorm(nn.Module):
    """GroupNorm with one channel to a group: scale and bias are the normalization's own, not two more passes."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, …)."""
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def linear_part(linear: nn.Linear, half: int) -> nn.Linear:
    """The layer that computes one half of another's outputs."""
    part = copy.deepcopy(linear)
    part.out_features = linear.out_features // 2
    if (slot := slot_of(linear, first=half * part.out_features)) is not None:
        part.__dict__["slot"] = slot
    part.weight = nn.Parameter(linear.weight.chunk(2)[half], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.chunk(2)[half], requires_grad=False)
    return part


def scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    """The layer that computes another's outputs times factor."""
    part = copy.deepcopy(linear)
    if (slot := slot_of(linear, scale=factor)) is not None:
        part.__dict__["slot"] = slot
    part.weight = nn.Parameter(linear.weight * factor, requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias * factor, requires_grad=False)
    return part


def linear_from_pointwise(conv: nn.Conv2d) -> nn.Module:
    """A 1×1 convolution as a product on (B, N, C): no blocked layout to go to and come back from."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight[:, :, 0, 0], requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias, requires_grad=False)
    slot = slot_of(conv)
    return linear if slot is None else with_slot(linear, slot)
