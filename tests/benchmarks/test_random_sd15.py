"""The random Stable Diffusion 1.5: its architecture by numbers, its seed, and that nothing is overwritten."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks import random_sd15
from engine.errors import OutputError

torch = pytest.importorskip("torch")

PARAMETERS = (859_520_964, 83_653_863, 123_060_480)
"""Of the published UNet, VAE and text encoder."""


def test_the_architecture_is_the_published_one():
    with torch.device("meta"):
        made = random_sd15.modules()
    assert tuple(sum(p.numel() for p in module.parameters()) for module in made) == PARAMETERS


@pytest.fixture
def small(monkeypatch):
    """The same model, of few channels."""
    channels = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    monkeypatch.setattr(random_sd15, "UNET", {**random_sd15.UNET, **channels, "cross_attention_dim": 32})
    monkeypatch.setattr(random_sd15, "VAE", {**random_sd15.VAE, **channels})
    few = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(random_sd15, "TEXT_ENCODER", {**random_sd15.TEXT_ENCODER, **few})


def test_a_folder_that_export_takes_and_a_seed_that_decides(small, tmp_path: Path):
    from export.families import open_model

    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert random_sd15.main([str(tmp_path / name), "--seed", seed]) == 0
    a, b, c = (hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(tmp_path.glob("*/unet/*.safetensors")))
    assert a == b != c
    model = open_model(tmp_path / "a")
    assert model.defaults.scheduler == "pndm"
    assert (model.family, model.defaults.height, model.latents.channels) == ("sd", 512, 4)
    assert {p.dtype for spec in model.specs("fp16") for p in spec.module.parameters()} == {torch.float16}
    assert not list(tmp_path.glob(".*"))


def test_what_is_there_stays(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError):
        random_sd15.save(tmp_path, seed=0, dtype="fp16")
    assert random_sd15.main([str(tmp_path)]) == 2
    assert "OutputError" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"
