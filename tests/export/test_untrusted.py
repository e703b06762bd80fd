"""A component's folder as it is opened: which layouts are read, and what is refused before memory is taken."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import SourceError

torch = pytest.importorskip("torch")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import CLIPTextModel  # noqa: E402

from export.families import open_model  # noqa: E402
from export.source import read_index, read_json  # noqa: E402
from export.untrusted import checked_config, open_component, running, weights_of  # noqa: E402

UNET = "diffusion_pytorch_model.safetensors"
NULLS = (
    "class_embed_type", "cross_attention_norm", "encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads",
    "mid_block_only_cross_attention", "num_class_embeds", "time_cond_proj_dim", "time_embedding_act_fn",
    "time_embedding_dim", "timestep_post_act", "upcast_attention", "addition_embed_type", "addition_time_embed_dim",
)  # fmt: skip
"""What the config of SDXL's published UNet, and those of its kin, have null for."""


@pytest.fixture
def source(tiny_source, tmp_path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_source, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_weights_as_they_are_in_the_type_asked_for(source):
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")):
        module = open_component(kind, source / part, torch.float16)
        assert not module.training
        file = next((source / part).glob("*.safetensors"))
        for name, weight in load_file(file).items():
            assert torch.equal(module.state_dict()[name], weight.half())


def test_names_of_older_text_encoders(source):
    """Published files have a prefix that transformers dropped; its loading takes both."""
    path = source / "text_encoder" / "model.safetensors"
    before = open_component(CLIPTextModel, source / "text_encoder", torch.float32).state_dict()
    weights = {f"text_model.{name}": weight for name, weight in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, {"format": "pt"})
    after = open_component(CLIPTextModel, source / "text_encoder", torch.float32).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_names_of_older_vaes(source):
    path = source / "vae" / UNET
    before = open_component(AutoencoderKL, source / "vae", torch.float32).state_dict()
    weights = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{new}.", f".{old}."): weight for name, weight in weights.items()}
    assert weights.keys() != before.keys()
    save_file(weights, path, {"format": "pt"})
    after = open_component(AutoencoderKL, source / "vae", torch.float32).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_shards_and_a_variant(source, tmp_path):
    unet = open_component(UNet2DConditionModel, source / "unet", torch.float32)
    unet.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    unet.save_pretrained(tmp_path / "variant", variant="fp16")
    assert len(weights_of(UNet2DConditionModel, tmp_path / "shards")[1]) > 2
    assert weights_of(UNet2DConditionModel, tmp_path / "variant")[0] == "fp16"
    for name in ("shards", "variant"):
        again = open_component(UNet2DConditionModel, tmp_path / name, torch.float32).state_dict()
        assert all(torch.equal(weight, again[key]) for key, weight in unet.state_dict().items())


def test_a_published_config_may_have_null_for_false(source):
    path = source / "unet" / "config.json"
    change(
        path, **dict.fromkeys(NULLS), mid_block_type="UNetMidBlock2DCrossAttn", transformer_layers_per_block=[1, 1, 1]
    )
    open_component(UNet2DConditionModel, source / "unet", torch.float32)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"block_out_channels": [32, 32, 1_000_000_000]}),
        ("unet", {"block_out_channels": [1_000_000, 1_000_000, 1_000_000]}),
        ("unet", {"cross_attention_dim": 1_000_000}),
        ("unet", {"layers_per_block": 100}),
        ("unet", {"layers_per_block": 1_000_000}),
        ("unet", {"transformer_layers_per_block": 128}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_eps": [1e-5]}),
        ("unet", {"norm_eps": None}),
        ("unet", {"act_fn": 3}),
        ("unet", {"_class_name": "UNet3DConditionModel"}),
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("unet", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("vae", {"block_out_channels": [32] * 65}),
        ("vae", {"latent_channels": 1_000_000}),
        ("text_encoder", {"vocab_size": 1_000_000}),
        ("text_encoder", {"vocab_size": 10**18}),
        ("text_encoder", {"max_position_embeddings": 1_000_000}),
        ("text_encoder", {"num_hidden_layers": 128}),
        ("text_encoder", {"num_hidden_layers": 4}),
        ("text_encoder", {"hidden_size": 64}),
        ("text_encoder", {"hidden_size": "32"}),
        ("text_encoder", {"eos_token_id": [1, 2]}),
        ("text_encoder", {"architectures": ["BertModel"]}),
        ("text_encoder", {"architectures": 3}),
    ],
)
def test_a_config_that_is_not_its_weights_own_is_refused_before_memory_is_taken(source, part, values):
    """16 MiB of Python's memory, where the largest of these would take terabytes of torch's.

    torch's own is not traced; test_hostile measures the process.
    """
    change(source / part / "config.json", **values)
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[part]
    tracemalloc.start()
    with pytest.raises(SourceError):
        open_component(kind, source / part, torch.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"fusion_config": {"patch_embeddings": True}},
        {"tie_word_embeddings": True},
    ],
)
def test_what_a_text_encoder_config_asks_for_beside_its_architecture_is_not_heard(source, values):
    change(source / "text_encoder" / "config.json", **values)
    module = open_component(CLIPTextModel, source / "text_encoder", torch.float32)
    assert not set(values) & set(vars(module.config)) - {"_attn_implementation", "tie_word_embeddings"}
    assert module.config._attn_implementation in ("sdpa", "eager")


def test_weights_that_are_not_there_or_pickles(source):
    (source / "unet" / UNET).rename(source / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(SourceError, match="pickles are never read"):
        open_component(UNet2DConditionModel, source / "unet", torch.float32)
    (source / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match="no weights"):
        open_component(UNet2DConditionModel, source / "unet", torch.float32)


def test_an_adapter_that_names_another_model(source):
    (source / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(SourceError, match="adapter"):
        checked_config(CLIPTextModel, source / "text_encoder")


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/etc/passwd", "none.safetensors", "a\x00.safetensors", ""])
def test_shards_that_lie_elsewhere(source, name):
    (source / "unet" / UNET).rename(source / "stolen.safetensors")
    (source / "unet" / f"{UNET}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(SourceError):
        open_component(UNet2DConditionModel, source / "unet", torch.float32)


@pytest.mark.parametrize(
    "values",
    [
        {"unet": ["evil", "Model"]}, {"unet": ["diffusers", "os.system"]}, {"unet": ["diffusers"]}, {"unet": {}},
        {"../unet": ["diffusers", "UNet2DConditionModel"]}, {"_unet": ["diffusers", "X"]}, {"x": [["os"], "system"]},
    ],
)  # fmt: skip
def test_an_index_of_foreign_parts(source, values):
    change(source / "model_index.json", **values)
    with pytest.raises(SourceError, match="code of its own"):
        read_index(source)


NO_CONFIGS = (
    "[" * 10**5, "{" * 10**5, '{"a":' * 10**5, "9" * 10**5, '"a"', "", "\ud800", " " * 5 * 2**20, '{"a": 1e999}',
    '{"a": [' + "1," * 10**5 + "1]}",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_CONFIGS, ids=range(len(NO_CONFIGS)))
def test_json_that_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SourceError):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "values",
    [{"num_train_timesteps": 10**12}, {"num_train_timesteps": 0}, {"beta_end": "x"},
     {"trained_betas": [1.0] * 20_000}, {"beta_schedule": "evil"}, {"timestep_spacing": 3}],
)  # fmt: skip
def test_schedulers_that_are_none(source, values):
    change(source / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(SourceError):
        open_model(source)


def test_a_hosts_memory_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(SourceError, match=r"memory.*--unchecked"), running(tmp_path, "denoiser"):
        torch.empty(10**15)
    with pytest.raises(SourceError, match="does not run"), running(tmp_path, "denoiser"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_folder_that_cannot_be_read_is_a_source_error(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError("denied")

    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr("export.source._read_bounded", denied)
    with pytest.raises(SourceError, match="unreadable"):
        read_index(tmp_path)
