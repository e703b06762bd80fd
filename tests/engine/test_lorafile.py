"""Pairs of every dialect's endings, and how much each counts; anything else is refused by its key."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.errors import LoraInvalid
from engine.lorafile import LoraFile, check_weight
from tests.written_loras import whole, write

ENDINGS = [
    (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"), (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".processor.to_q_lora.down.weight", ".processor.to_q_lora.up.weight"),
]  # fmt: skip
A, B = np.full((2, 8), 0.5, np.float32), np.full((4, 2), 0.25, np.float32)


def read(tmp_path, tensors, metadata=None):
    return LoraFile(write(tmp_path / "x.safetensors", tensors, metadata))


@pytest.mark.parametrize(("down", "up"), ENDINGS)
def test_endings_of_each_dialect(tmp_path, down, up):
    (pair,) = read(tmp_path, {f"x.y{down}": A, f"x.y{up}": B}).pairs()
    assert pair.stem == "x.y" + (".processor.to_q_lora" if "processor" in down else "")
    assert (pair.rank, pair.scale, pair.key) == (2, 1.0, f"x.y{down}")
    assert np.array_equal(pair.down, A)
    assert np.array_equal(pair.up, B)


def test_a_layers_own_alpha(tmp_path):
    (pair,) = read(tmp_path, {"x.lora_up.weight": B, "x.lora_down.weight": A, "x.alpha": np.array(8.0)}).pairs()
    assert pair.scale == 4.0


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.lora_alpha": 8}, 4.0), ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"x.y": 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"z.y": 1}}, 4.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5), ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)  # fmt: skip
def test_alphas_that_diffusers_saves(tmp_path, settings, scale):
    tensors = {"unet.x.y.lora_A.weight": A, "unet.x.y.lora_B.weight": B}
    (pair,) = read(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(settings)}).pairs()
    assert pair.scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"), ("[]", "cannot be read"), ('{"unet.lora_alpha": 8, "unet.lora_alpha": 4}', "twice"),
        ('{"unet.lora_alpha": "8"}', "finite"), ('{"unet.lora_alpha": 1e999}', "cannot be read|finite"),
        ('{"unet.r": 4}', "finite"),
        ('{"unet.lora_alpha": 4, "unet.use_dora": true}', "DoRA"),
    ],
)  # fmt: skip
def test_settings_that_diffusers_does_not_save(tmp_path, text, words):
    tensors = {"unet.x.y.lora_A.weight": A, "unet.x.y.lora_B.weight": B}
    with pytest.raises(LoraInvalid, match=words) as caught:
        read(tmp_path, tensors, {"lora_adapter_metadata": text})
    assert "x.safetensors" in caught.value.subject


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("x.dora_scale", "DoRA"), ("x.hada_w1_a", "LoHa"), ("x.lokr_w2", "LoKr"), ("x.lora_mid.weight", "CP"),
        ("x.diff", "whole differences"), ("x.lora_B.bias", "a bias"), ("x.weight", "another kind"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_their_key(tmp_path, key, kind):
    with pytest.raises(LoraInvalid, match=kind) as caught:
        read(tmp_path, {**whole(), key: A})
    assert key in caught.value.subject
    assert "x.safetensors" in caught.value.subject


def test_half_a_pair_and_two_halves_of_one_kind(tmp_path):
    with pytest.raises(LoraInvalid, match="without its up"):
        read(tmp_path, {"x.lora_down.weight": A})
    with pytest.raises(LoraInvalid, match="without its down"):
        read(tmp_path, {"x.alpha": np.array(1.0)})
    with pytest.raises(LoraInvalid, match="twice"):
        read(tmp_path, {"x.lora_down.weight": A, "x.lora_A.weight": A, "x.lora_up.weight": B})
    with pytest.raises(LoraInvalid, match="no tensor"):
        read(tmp_path, {})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 11, "1", None, True])
def test_weights_that_are_none(weight):
    with pytest.raises(LoraInvalid, match="weight"):
        check_weight("x", weight)


@pytest.mark.parametrize("weight", [0, -1.5, 10, np.float32(0.5)])
def test_weights(weight):
    check_weight("x", weight)
