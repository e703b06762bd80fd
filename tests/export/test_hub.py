"""A hub's model: fetched at one commit, of the files that are worth it, from a hub that the test plays over HTTP."""

from __future__ import annotations

import pytest

from engine.errors import SourceError

pytest.importorskip("torch")
constants = pytest.importorskip("huggingface_hub.constants")

from export.families import open_model  # noqa: E402
from export.hub import fetch, wanted  # noqa: E402
from export.origin import bundle_name, open_source  # noqa: E402
from tests.export.fake_hub import COMMIT, serving  # noqa: E402

NAME = "maker/tiny"
USELESS = {
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"other",
    "vae/flax_model.msgpack": b"flax",
    "safety_checker/model.safetensors": b"judge",
    "safety_checker/config.json": b"{}",
    "tiny.safetensors": b"all in one",
    "tiny.ckpt": b"pickle",
    "README.md": b"words",
    "unet/../../evil.json": b"{}",
    "run.py": b"raise SystemExit",
}


@pytest.fixture
def hub(tiny_source, tmp_path, monkeypatch):
    """The library online, with a cache of its own, and a hub that has the tiny model among files that nobody wants."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(NAME, tiny_source, **USELESS) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def test_a_model_is_fetched_at_its_commit_without_what_is_of_no_use(hub, tiny_source, tmp_path):
    origin = open_source(f"{NAME}@v1", tmp_path)
    assert origin.text == f"hub:{NAME}@{COMMIT}"
    assert bundle_name(f"{NAME}@v1") == "tiny"
    assert not set(hub.fetched) & set(USELESS)
    assert set(hub.fetched) == {path.relative_to(tiny_source).as_posix() for path in tiny_source.rglob("*.*")}
    assert open_model(origin.folder).family == "sd"


def test_a_second_time_nothing_is_fetched_even_offline(hub, tmp_path, monkeypatch):
    first = open_source(NAME, tmp_path)
    hub.fetched.clear()
    assert open_source(first.text, tmp_path) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_source(f"{NAME}@{COMMIT}", tmp_path) == first
    assert not hub.fetched


def test_configs_alone(hub):
    folder, _ = fetch(NAME, weights=False)
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
    assert (folder / "unet" / "config.json").is_file()


@pytest.mark.parametrize("text", ["maker/none", f"{NAME}@none", f"hub:{NAME}@0000000000"])
def test_no_such_model_or_revision(hub, tmp_path, text):
    with pytest.raises(SourceError, match="no such model or revision"):
        open_source(text, tmp_path)


def test_a_model_of_pickles(hub, tmp_path):
    for name in [name for name in hub.files if name.startswith("unet/") and name.endswith(".safetensors")]:
        del hub.files[name]
    with pytest.raises(SourceError, match="unet without safetensors"):
        open_source(NAME, tmp_path)
    assert "unet/diffusion_pytorch_model.bin" not in hub.fetched


def test_a_repository_that_is_no_diffusers_folder(hub, tmp_path):
    del hub.files["model_index.json"]
    with pytest.raises(SourceError, match="without model_index"):
        open_source(NAME, tmp_path)


def test_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="no answer of the hub"):
        open_source(NAME, tmp_path)


def test_offline_and_not_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        open_source(NAME, tmp_path)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors", "model.bin"], ["model.fp16.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.fp16.safetensors"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (["model.ema.safetensors", "openvino_model.bin"], ["model.ema.safetensors"]),
    ],
)  # fmt: skip
def test_one_variant_of_the_weights(files, chosen):
    names = [f"unet/{name}" for name in (*files, "config.json")]
    assert wanted("x", names, ("unet",), weights=True) == [f"unet/{name}" for name in ("config.json", *chosen)]


def test_the_template_of_a_chat_is_fetched(tmp_path):
    names = ["tokenizer/tokenizer.json", "tokenizer/chat_template.jinja", "tokenizer/README.md"]
    assert wanted("x", names, ("tokenizer",), weights=True) == names[:2]
