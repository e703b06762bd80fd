"""A single checkpoint: the weights to the bit in diffusers layout, kept once; what is no whole model is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from engine.errors import OptionInvalid, SourceError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from export import single_file  # noqa: E402
from export.families import open_model  # noqa: E402
from export.origin import bundle_name, open_source  # noqa: E402
from tests.single_checkpoint import save_checkpoint  # noqa: E402

WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_the_published_names_of_each_family(small, tmp_path, monkeypatch, name):
    """From random weights through the names of the published files and back: the same to the bit."""
    from export import families

    monkeypatch.setitem(families.FAMILIES, "StableDiffusionXLPipeline", "sdxl")
    source = open_source(f"random:{name}", tmp_path).folder
    save_checkpoint(source, tmp_path / "x.safetensors", layers=2)
    made = open_source(str(tmp_path / "x.safetensors"), tmp_path, config=str(source)).folder
    for file in source.glob("*/*.safetensors"):
        ours, theirs = load_file(made / file.relative_to(source)), load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def checkpoint(tiny_source, tmp_path) -> Path:
    path = tmp_path / "dream.safetensors"
    save_checkpoint(tiny_source, path)
    return path


@pytest.fixture
def configs(tiny_source, tmp_path) -> Path:
    """The tiny model without its weights."""
    return Path(shutil.copytree(tiny_source, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_weights_are_the_same_to_the_bit_in_the_dtype_they_had(checkpoint, configs, tiny_source, tmp_path, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in load_file(checkpoint).items()}, checkpoint)
    origin = open_source(str(checkpoint), tmp_path / "out", config=str(configs))
    for name in WEIGHTS:
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (origin.folder, tiny_source))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].to(dtype)) for key in ours)
    model, own = open_model(origin.folder), open_model(tiny_source)
    assert (model.latents, model.defaults, model.vocabulary) == (own.latents, own.defaults, own.vocabulary)
    assert len(model.specs("fp16")) == len(own.graphs)


def test_the_folder_is_kept_by_what_it_was_made_from(checkpoint, configs, tmp_path, monkeypatch):
    first = open_source(str(checkpoint), tmp_path / "out", config=str(configs))
    assert first.text.startswith("file:dream.safetensors sha256:")
    assert len(first.text.split(":")[-1]) == 64
    assert bundle_name(str(checkpoint)) == "dream"
    assert first.folder.parent == tmp_path / "out" / ".sources"
    assert [path.name for path in first.folder.parent.iterdir() if path.is_dir()] == [first.folder.name]
    with monkeypatch.context() as patched:
        patched.setattr(single_file, "convert", None)
        assert open_source(str(checkpoint), tmp_path / "out", config=str(configs)) == first
    change(configs / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert open_source(str(checkpoint), tmp_path / "out", config=str(configs)).folder != first.folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_without_configs_the_error_says_what_to_pass(checkpoint, tmp_path):
    with pytest.raises(SourceError, match=r"--config DIR.*--config ORG/NAME@REVISION"):
        open_source(str(checkpoint), tmp_path / "out")


def test_configs_for_what_has_its_own(tiny_source, configs, tmp_path):
    with pytest.raises(OptionInvalid, match="checkpoint only"):
        open_source(str(tiny_source), tmp_path / "out", config=str(configs))


@pytest.mark.parametrize(
    "part",
    [
        "cond_stage_model.",
        "first_stage_model.",
        "model.diffusion_model.out.",
        "model.diffusion_model.output_blocks.1.",
        "cond_stage_model.transformer.text_model.enc",
    ],
)
def test_a_checkpoint_that_lacks_a_part(checkpoint, configs, tmp_path, part):
    save_file({name: t for name, t in load_file(checkpoint).items() if not name.startswith(part)}, checkpoint)
    with pytest.raises(SourceError):
        open_source(str(checkpoint), tmp_path / "out", config=str(configs))
    assert not [path for path in (tmp_path / "out" / ".sources").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"block_out_channels": [32, 64, 64]}),
        ("unet/config.json", {"block_out_channels": [32, 32, 1_000_000]}),
        ("unet/config.json", {"cross_attention_dim": 1_000_000_000}),
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}),
        ("text_encoder/config.json", {"vocab_size": 1_000_000}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("model_index.json", {"_class_name": "os"}),
        ("model_index.json", {"unet": ["this", "UNet2DConditionModel"]}),
        ("model_index.json", {"unet": ["diffusers", "DiffusionPipeline"]}),
        ("model_index.json", {"../unet": ["diffusers", "UNet2DConditionModel"]}),
    ],
)
def test_configs_of_another_model_or_none(checkpoint, configs, tmp_path, file, values):
    change(configs / file, **values)
    with pytest.raises(SourceError):
        open_source(str(checkpoint), tmp_path / "out", config=str(configs))


class Evil:
    """What unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "model.bin", "model.pkl", "MODEL.CKPT"])
@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_is_never_read(configs, tmp_path, name, write):
    path, touched = tmp_path / name, tmp_path / "touched"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Evil(touched)))
    else:
        torch.save({"state_dict": Evil(touched)}, path)
    disguised = path.with_suffix(".safetensors")
    shutil.copyfile(path, disguised)
    for each in (path, disguised):
        with pytest.raises(SourceError, match=r"pickle|zip archive"):
            open_source(str(each), tmp_path / "out", config=str(configs) if each == disguised else None)
    assert not touched.exists()
