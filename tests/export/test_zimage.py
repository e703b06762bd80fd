"""Z-Image's graphs over real modules: the transformer, Qwen3 and what is hoisted; and the configs that are refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import Qwen3ForCausalLM, Qwen3Model

from engine.bundle import load_bundle
from engine.errors import SchedulerUnsupported, SourceError
from export.bundle import export_bundle
from export.families import open_model
from export.qwen import QwenConditioning
from export.source import source_sha256
from export.zimage import ZImageDenoiser
from tests.conftest import FLOW
from tests.tiny_zimage import text_encoder, transformer

TOLERANCE = 2e-6
"""Relative to the largest value: float32 sums of a few small layers; 4e-7 was seen."""


@pytest.fixture(scope="module")
def real() -> Any:
    torch.manual_seed(1)
    return transformer()


def both(real: Any, captions: list[int], height: int, width: int, *, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What we make of captions of so many tokens, and what diffusers' own module makes, negated."""
    generator = torch.Generator().manual_seed(len(captions) * height + width)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    rows, tokens = len(captions), max(-(-count // 32) * 32 for count in captions)
    sample, timestep = draw(rows, 16, height, width), 1000 * torch.rand(rows, generator=generator)
    states, weights = draw(rows, tokens, 64), (torch.arange(tokens) < torch.tensor(captions)[:, None]).float()
    listed = [states[row, :count] for row, count in enumerate(captions)]
    with torch.inference_mode():
        expected = real([one[:, None] for one in sample], (1000 - timestep) / 1000, listed, return_dict=False)[0]
        found = ZImageDenoiser(real, masked=masked)(sample, timestep, states, weights)
    return found, -torch.stack([one[:, 0] for one in expected])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (6, 10), (20, 12)])
@pytest.mark.parametrize("captions", [[3], [32, 17], [500, 481]])
@pytest.mark.parametrize("masked", [False, True])
def test_the_transformer_is_diffusers(real: Any, captions: list[int], height: int, width: int, masked: bool) -> None:
    """16, 64, 15 and 60 tokens of an image: with and without filling."""
    found, expected = both(real, captions, height, width, masked=masked)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_captions_of_different_lengths_share_a_batch_by_a_mask(real: Any) -> None:
    found, expected = both(real, [3, 500, 64, 65], 6, 10, masked=True)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    wrong, _ = both(real, [3, 500, 64, 65], 6, 10, masked=False)
    assert (wrong - expected)[0].abs().max() > 1e-3
    assert (wrong - expected)[1].abs().max() <= TOLERANCE * expected.abs().max()


def test_filling_is_attended_to_and_its_states_are_not_read(real: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    sample, states = torch.randn(1, 16, 6, 10, generator=generator), torch.randn(1, 32, 64, generator=generator)
    weights, denoiser = (torch.arange(32) < 5).float()[None], ZImageDenoiser(real)
    with torch.inference_mode():
        plain = denoiser(sample, torch.tensor([500.0]), states, weights)
        other = states.clone()
        other[:, 5:] = 100
        assert torch.equal(plain, denoiser(sample, torch.tensor([500.0]), other, weights))
        for token in (real.cap_pad_token, real.x_pad_token):
            kept = token.clone()
            token.zero_()
            assert (plain - denoiser(sample, torch.tensor([500.0]), states, weights)).abs().max() > 1e-3
            token.copy_(kept)


def test_qwen_is_transformers() -> None:
    """The states of the last layer but one; padding behind a text changes nothing of it."""
    torch.manual_seed(2)
    model = text_encoder()
    ids, mask = torch.randint(0, 400, (3, 64)), torch.ones(3, 64, dtype=torch.long)
    mask[0, 3:], mask[1, 40:] = 0, 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        found = QwenConditioning(model, 512)(ids.int())
    assert (found - expected)[mask.bool()].abs().max() <= TOLERANCE * expected.abs().max()


def softmaxes_of(folder: Path, name: str) -> list[str]:
    """The modules whose attentions a graph has."""
    graph = next(graph for graph in load_bundle(folder).graphs("fp16") if graph.name == name)
    model = onnx.load(folder / graph.file, load_external_data=False)
    return [node.name.split("/")[1] for node in model.graph.node if node.op_type == "Softmax"]


def test_the_captions_path_is_in_the_prologue(zimage_bundle: Path) -> None:
    """Two blocks over the caption run once; the loop has two over the image and three over both."""
    graphs = {graph.name: graph for graph in load_bundle(zimage_bundle).graphs("fp16")}
    assert [b.name for b in graphs["prologue"].inputs] == ["encoder_hidden_states", "token_weights"]
    assert [b.name for b in graphs["denoiser"].inputs] == ["sample", "timestep", "prologue_00"]
    assert [(b.dtype, b.shape) for b in graphs["prologue"].outputs] == [("float16", ("rows", "tokens", 96))]
    softmaxes = {name: softmaxes_of(zimage_bundle, name) for name in ("prologue", "denoiser", "conditioning")}
    assert softmaxes["prologue"] == ["context_refiner.0", "context_refiner.1"]
    assert Counter(softmaxes["denoiser"]) == Counter(
        ["noise_refiner.0", "noise_refiner.1", "layers.0", "layers.1", "layers.2"]
    )
    assert len(softmaxes["conditioning"]) == 3  # of four layers the last is not run


def test_the_mask_is_in_the_prologue_too(zimage_masked: Path) -> None:
    graphs = {graph.name: graph for graph in load_bundle(zimage_masked).graphs("fp16")}
    assert [b.name for b in graphs["denoiser"].inputs][:2] == ["sample", "timestep"]
    shapes = [b.shape for b in graphs["prologue"].outputs]
    assert shapes == [("rows", 1, 1, "tokens"), ("rows", "tokens", 96), ("rows", 1, 1, 2, 4)]


def test_what_bundle_json_says(zimage_bundle: Path) -> None:
    bundle = load_bundle(zimage_bundle)
    assert (bundle.family, bundle.guidance_offset, bundle.max_clip_skip, bundle.masked) == ("zimage", 1.0, 0, False)
    assert (bundle.defaults.guidance_scale, bundle.defaults.num_inference_steps) == (0.0, 8)
    assert (bundle.limits.min_px, bundle.limits.max_px, bundle.limits.multiple_px) == (64, 256, 16)
    assert bundle.tokenizer.lengths == range(32, 513, 32)
    assert (bundle.latents.channels, bundle.latents.factor) == (16, 8)


def test_a_model_of_the_published_size_takes_512_to_2048_px(zimage_source: Path, tmp_path: Path) -> None:
    source = changed(zimage_source, tmp_path, "vae", sample_size=1024)
    limits = open_model(source).limits
    assert (limits.min_px, limits.max_px, limits.multiple_px) == (512, 2048, 16)
    assert all(map(limits.allow, (512, 720, 768, 1024, 1152, 1280, 1360, 2048)))
    short = changed(source, tmp_path / "short", "transformer", axes_lens=[1536, 100, 512])
    assert open_model(short).limits.max_px == 1600


def changed(source: Path, place: Path, component: str, **changes: Any) -> Path:
    """A copy of the model whose config of one component says something else; an ellipsis takes a key away."""
    folder = Path(shutil.copytree(source, place / "source"))
    path = folder / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("transformer", {"siglip_feat_dim": 1152}, r"siglip_feat_dim 1152: Z-Image-Omni's.*allowed: none"),
    ("transformer", {"all_patch_size": [2, 4]}, r"all_patch_size \[2, 4\]; allowed: \[2\]"),
    ("transformer", {"all_f_patch_size": [2]}, r"all_f_patch_size \[2\]; allowed: \[1\]"),
    ("transformer", {"qk_norm": False}, r"qk_norm False; allowed: True"),
    ("transformer", {"n_kv_heads": 1}, r"n_kv_heads 1; allowed: 3"),
    ("transformer", {"t_scale": "x"}, r"t_scale 'x'; allowed: a number above 0"),
    ("transformer", {"rope_theta": []}, r"rope_theta \[\]; allowed: a number above 0"),
    ("transformer", {"norm_eps": -1}, r"norm_eps -1; allowed: a number above 0"),
    ("transformer", {"n_heads": ...}, r"without a usable 'n_heads'"),
    ("transformer", {"axes_lens": [512, 512, 512]}, r"axes_lens \[512, 512, 512\]; allowed: three axes"),
    ("transformer", {"_class_name": "Lumina2Transformer2DModel"}, r"'Lumina2Transformer2DModel'; allowed: 'ZImage"),
    ("transformer", {"cap_feat_dim": 65}, r"cap_feat_dim 65; allowed: 64, the text encoder's width"),
    ("transformer", {"in_channels": 4}, r"in_channels 4; allowed: 16, the VAE's channels"),
    ("text_encoder", {"model_type": "qwen2"}, r"model_type 'qwen2'; allowed: 'qwen3'"),
    ("text_encoder", {"use_sliding_window": True}, r"sliding windows; allowed: full attention"),
    ("text_encoder", {"layer_types": ["full_attention", "linear"]}, r"sliding windows; allowed: full attention"),
    ("text_encoder", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, r"rope_type 'yarn'"),
    ("text_encoder", {"num_hidden_layers": 1}, r"num_hidden_layers 1; allowed: 2 or more"),
    ("scheduler", {"num_train_timesteps": 500}, r"num_train_timesteps 500; allowed: 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("component", "changes", "message"), REFUSED)
def test_what_it_cannot_do_is_refused_by_name(
    zimage_source: Path, tmp_path: Path, component: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_model(changed(zimage_source, tmp_path, component, **changes))


def test_steps_that_depend_on_the_size_are_refused(zimage_source: Path, tmp_path: Path) -> None:
    with pytest.raises(SchedulerUnsupported, match="use_dynamic_shifting=True"):
        open_model(changed(zimage_source, tmp_path, "scheduler", use_dynamic_shifting=True))


def test_the_omni_pipeline_is_refused(zimage_source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zimage_source, tmp_path / "omni"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "ZImageOmniPipeline"}))
    with pytest.raises(SourceError, match=r"'ZImageOmniPipeline'; allowed: .*ZImagePipeline"):
        open_model(folder)


def states_of(folder: Path) -> torch.Tensor:
    """What the conditioning makes of some ids."""
    (conditioning,) = open_model(folder).specs("fp32", ("conditioning",))
    with torch.inference_mode():
        states: torch.Tensor = conditioning.module(torch.arange(64, dtype=torch.int32).reshape(2, 32))
    return states


def test_a_config_with_rope_theta_by_itself_will_do(zimage_source: Path, tmp_path: Path) -> None:
    """As it was saved before transformers 5."""
    changes = {"rope_theta": 1_000_000, "rope_scaling": None, "rope_parameters": ...}
    source = changed(zimage_source, tmp_path, "text_encoder", **changes)
    assert torch.equal(states_of(source), states_of(zimage_source))


def test_the_weights_of_the_whole_language_model_will_do(zimage_source: Path, tmp_path: Path) -> None:
    """Its names have a level more, and a head."""
    source = Path(shutil.copytree(zimage_source, tmp_path / "source"))
    own = Qwen3Model.from_pretrained(zimage_source / "text_encoder")
    whole = Qwen3ForCausalLM(own.config)
    whole.model.load_state_dict(own.state_dict())
    shutil.rmtree(source / "text_encoder")
    whole.save_pretrained(source / "text_encoder")
    config = json.loads((source / "text_encoder" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert torch.equal(states_of(source), states_of(zimage_source))


def test_the_template_of_the_chat_is_part_of_the_source(zimage_source: Path, tmp_path: Path) -> None:
    """transformers saves it in a file of its own."""
    source = Path(shutil.copytree(zimage_source, tmp_path / "source"))
    components = open_model(source).components
    before = source_sha256(source, components)
    template = source / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert source_sha256(source, components) != before


def test_tokens_without_embeddings_are_refused(zimage_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(zimage_source, tmp_path / "source"))
    shutil.rmtree(source / "text_encoder")
    text_encoder(vocab_size=120).save_pretrained(source / "text_encoder")
    with pytest.raises(SourceError, match=r"tokenizer: got ids up to \d+; allowed: ids below 120"):
        export_bundle(source, tmp_path / "out", schedulers=FLOW)
    assert not (tmp_path / "out").exists()
