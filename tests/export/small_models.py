"""The random models' architectures with few channels and layers, in place of the published ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
FEW: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 1},
    "vae": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1},
    "text_encoder": TEXT,
    "text_encoder_2": {**TEXT, "hidden_size": 64, "projection_dim": 64},
}
"""The widths of the two encoders differ, as the published ones': by them diffusers tells one from the other."""
FEW_XL = {
    "block_out_channels": (32, 64, 64), "cross_attention_dim": 96, "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64 + 6 * 8, "transformer_layers_per_block": (1, 2, 2),
}  # fmt: skip
FEW_Z: dict[str, dict[str, Any]] = {
    "transformer": {
        "dim": 96, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 64,
        "axes_dims": [8, 12, 12],
    },
    "vae": FEW["vae"],
    "text_encoder": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32,
    },
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `random:NAME` is, until the test ends."""
    from export.architectures import ARCHITECTURES

    for name, one in ARCHITECTURES.items():
        few = FEW_Z if name == "zimage" else FEW
        modules = {part: (kind, {**settings, **few[part]}) for part, (kind, settings) in one.modules.items()}
        if name == "sdxl":
            modules["unet"][1].update(FEW_XL)
        monkeypatch.setitem(ARCHITECTURES, name, dataclasses.replace(one, modules=modules))
