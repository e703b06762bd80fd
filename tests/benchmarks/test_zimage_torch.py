"""Z-Image's baseline in PyTorch, once through on the CPU with a tiny model."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks import zimage_torch
from benchmarks.zimage_torch import VAE, Work

WORK = Work(
    size=64, steps=2, tokens=32,
    transformer={"dim": 48, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32,
                 "axes_dims": [8, 8, 8], "axes_lens": [64, 32, 32]},
    text={"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    vae={**VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
)  # fmt: skip


def test_eager_on_a_cpu():
    found = zimage_torch.measure(WORK, ["eager"], repeats=1, pictures=1)
    eager = found["modes"]["eager"]
    assert (found["precision"], found["steps"], found["tokens"]) == ("bf16", 2, 32)
    assert all(eager[name]["median"] > 0 for name in ("forward_ms", "decode_ms", "picture_s"))
    assert found["text_encoder"]["ms"]["median"] > 0
    assert found["text_encoder"]["parameters"] > 0
