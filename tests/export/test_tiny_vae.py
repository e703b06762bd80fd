"""A source that brings a small decoder gets previews of full size, as diffusers' own decodes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from engine.binding import Precision
from engine.bundle import load_bundle
from engine.errors import SourceError
from engine.schema import Latents
from export.families import open_model
from export.source import source_sha256
from export.tiny_vae import tiny_folder
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.tiny_vae import save_tiny_vae

LATENTS = Latents(channels=4, factor=8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_preview_is_what_diffusers_decodes(drawn_source: Path, drawn_bundle: Path, precision: Precision) -> None:
    """One grey level: a pixel near .5 may round to either side, and fp16's weights are rounded too."""
    tiny = AutoencoderTiny.from_pretrained(drawn_source / "taesd").eval()
    shown = []
    with Pipeline.load(drawn_bundle, backend="onnxruntime", precision=precision) as pipeline:
        request = Request(prompt="a cat", height=128, width=136, num_inference_steps=3, num_images=2)
        pipeline.generate(request, lambda step: shown.append((step.latents(), step.preview())))
    assert len(shown) == 3
    for latents, preview in shown:
        with torch.inference_mode():
            pixels = tiny.decode(torch.from_numpy(latents) / tiny.config.scaling_factor).sample
        expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
        assert preview.shape == (2, 128, 136, 3)
        assert preview.std() > 20
        assert np.abs(preview - expected).max() <= 1


def test_it_computes_in_the_variants_precision(drawn_bundle: Path) -> None:
    bundle = load_bundle(drawn_bundle)
    for precision in bundle.variants:
        graph = next(graph for graph in bundle.graphs(precision) if graph.name == "preview")
        assert (graph.stage, graph.precision, graph.optional) == ("preview", precision, True)
        assert [binding.shape for binding in graph.bindings] == [
            ("samples", 4, "height/8", "width/8"), ("samples", "height", "width", 3)
        ]  # fmt: skip


def test_it_is_of_the_sources_identity(drawn_source: Path, tmp_path: Path) -> None:
    model = open_model(drawn_source)
    assert model.components[-1] == "taesd"
    other = Path(shutil.copytree(drawn_source, tmp_path / "source"))
    assert source_sha256(other, model.components) == source_sha256(drawn_source, model.components)
    save_tiny_vae(other / "taesd", latent_shift=0.25)
    assert source_sha256(other, model.components) != source_sha256(drawn_source, model.components)


def source(folder: Path, **entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **entries}))
    return folder


def test_it_is_found_where_it_is_named_or_where_it_is_customary(tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    assert tiny_folder(folder, LATENTS) is None
    for name in ("vae_tiny", "taesd", "preview_vae"):
        save_tiny_vae(folder / name)
        assert tiny_folder(folder, LATENTS) == name
    save_tiny_vae(folder / "small")
    assert tiny_folder(source(folder, small=["diffusers", "AutoencoderTiny"]), LATENTS) == "small"
    (folder / "preview_vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert tiny_folder(source(folder), LATENTS) == "taesd"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "a decoder of 16 channels that enlarges by 8; allowed: 4 channels and 8"),
        ({"num_decoder_blocks": [1, 1]}, "a decoder of 4 channels that enlarges by 2"),
        ({"upsampling_scaling_factor": 4}, "that enlarges by 64"),
        ({"num_decoder_blocks": [4000, 1, 1, 1]}, "at most 64 in all"),
        ({"num_decoder_blocks": []}, "at most 64 in all"),
        ({"num_decoder_blocks": None}, "a config without a usable"),
        ({"latent_channels": "x"}, "a config without a usable"),
    ],
)
def test_one_for_other_latents_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    folder = source(tmp_path / "source")
    save_tiny_vae(folder / "taesd")
    path = folder / "taesd" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SourceError, match=message):
        tiny_folder(folder, LATENTS)


@pytest.mark.parametrize("name", ["../taesd", "gone", "a/b"])
def test_one_that_is_named_and_not_there_is_refused(tmp_path: Path, name: str) -> None:
    save_tiny_vae(tmp_path / "taesd")
    with pytest.raises(SourceError, match=r"model_index\.json|config\.json"):
        tiny_folder(source(tmp_path / "source", **{name: ["diffusers", "AutoencoderTiny"]}), LATENTS)


def test_a_tiny_one_in_the_vaes_place_is_refused(drawn_source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn_source, tmp_path / "source"))
    shutil.rmtree(folder / "vae")
    shutil.copytree(folder / "taesd", folder / "vae")
    with pytest.raises(SourceError, match="'AutoencoderTiny'; allowed: AutoencoderKL"):
        open_model(folder)
