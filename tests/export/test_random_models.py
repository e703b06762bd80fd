"""Random models: their architectures by numbers, seeds, what flows through them, and what stays where it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from engine.errors import OptionInvalid, OutputError, SourceError

torch = pytest.importorskip("torch")

from benchmarks import random_sd15  # noqa: E402
from export import random_models  # noqa: E402
from export.architectures import ARCHITECTURES  # noqa: E402
from export.origin import bundle_name, open_source  # noqa: E402

VAE, CLIP_L = 83_653_863, 123_060_480
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "sd21": {"unet": 865_910_724, "vae": VAE, "text_encoder": 340_387_840},
    "lcm": {"unet": 859_520_964 + 256 * 320, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {"unet": 2_567_463_684, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": 694_659_840},
    "zimage": {"transformer": 6_154_908_736, "vae": 83_819_683, "text_encoder": 4_022_468_096},
}
"""Of the published weights; LCM's guidance embedding is one product of 256 to 320 without a bias."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_architecture_is_the_published_one(name):
    architecture = ARCHITECTURES[name]
    counts = {part: random_models.made(architecture, part) for part in architecture.modules}
    assert {part: sum(p.numel() for p in made.parameters()) for part, made in counts.items()} == PARAMETERS[name]
    assert all(p.is_meta for made in counts.values() for p in made.parameters())


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


def test_a_folder_that_export_takes_and_a_seed_that_decides(small, tmp_path: Path):
    from export.families import open_model

    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert random_sd15.main([str(tmp_path / name), "--seed", seed]) == 0
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b != c
    model = open_model(tmp_path / "a")
    assert model.defaults.scheduler == "pndm"
    assert (model.family, model.defaults.height, model.latents.channels) == ("sd", 512, 4)
    assert {p.dtype for spec in model.specs("fp16") for p in spec.module.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_diffusers_itself_opens_the_folder_and_paints(small, tmp_path: Path, name):
    """Finite numbers in fp16, a denoiser that answers unit noise with its own size, and a picture that is not flat.

    0.3 to 3: the order of magnitude that was asked for; here 0.8 to 1.3, at full size 0.91 (SDXL) and 0.95 (SD 1.5).
    """
    import diffusers

    origin = open_source(f"random:{name}@3", tmp_path)
    assert (origin.text, origin.folder.name) == (f"random:{name} seed:3", f"random-{name}-3")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        origin.folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == ARCHITECTURES[name].pipeline
    answers = []
    denoiser = pipeline.transformer if name == "zimage" else pipeline.unet  # the one answers with a list of tensors
    denoiser.register_forward_hook(lambda _module, _inputs, answer: answers.append(answer[0][0].std().item()))
    images = pipeline(
        "a cat", num_inference_steps=2, height=64, width=64, output_type="np", guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert all(0.3 < answer < 3 for answer in answers), answers
    assert images.std() > 0.05
    for part in ARCHITECTURES[name].modules:
        assert all(p.half().isfinite().all() for p in getattr(pipeline, part).parameters())


def test_a_second_call_finds_what_the_first_made(small, tmp_path: Path, monkeypatch):
    first = open_source("random:sd15", tmp_path)
    monkeypatch.setattr(random_models, "write", None)
    assert open_source("random:sd15", tmp_path) == first
    assert {path.name for path in (tmp_path / ".sources").iterdir()} == {"random-sd15-0", ".random-sd15-0.lock"}


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    def fail(folder, name, *, seed, device):
        (folder / "half").write_text("")
        raise ValueError("no")

    monkeypatch.setattr(random_models, "write", fail)
    with pytest.raises(ValueError, match="no"):
        open_source("random:sd15", tmp_path)
    assert {path.name for path in (tmp_path / ".sources").iterdir()} == {".random-sd15-0.lock"}


def test_sdxl_pads_its_second_tokenizer_with_an_exclamation_mark(small, tmp_path: Path):
    from transformers import CLIPTokenizer

    folder = open_source("random:sdxl", tmp_path).folder
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
    assert (first.pad_token, second.pad_token, second.pad_token_id) == ("<|endoftext|>", "!", 0)
    assert first("a cat").input_ids == second("a cat").input_ids


@pytest.mark.parametrize(
    "text", ["random:", "random:sd3", "random:sdxl@", "random:sdxl@-1", "random:sdxl@x", "random:SDXL"]
)
def test_no_such_architecture(tmp_path: Path, text):
    with pytest.raises(SourceError, match="random:sd15, random:sd21"):
        open_source(text, tmp_path)
    with pytest.raises(SourceError):
        bundle_name(text)


def test_no_such_device(tmp_path: Path):
    with pytest.raises(OptionInvalid):
        open_source("random:sd15", tmp_path, device="cuda:999")


def test_what_is_there_stays(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError):
        random_sd15.save(tmp_path, seed=0, dtype="fp16")
    assert random_sd15.main([str(tmp_path)]) == 2
    assert "OutputError" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_each_is_a_model_of_its_family(small, tmp_path: Path):
    from export.families import open_model

    families = {"sd15": "sd", "sd21": "sd", "lcm": "lcm", "sdxl": "sdxl", "zimage": "zimage"}
    assert {name: open_model(open_source(f"random:{name}", tmp_path).folder).family for name in families} == families


def test_a_captions_tokens_are_bytes_within_qwens_template(small, tmp_path: Path):
    from export.tokenizer import export_templated

    folder = open_source("random:zimage", tmp_path).folder / "tokenizer"
    entry = export_templated(folder, tmp_path / "tokenizer.json", multiple=32, max_tokens=512)
    assert (entry.prefix, entry.suffix) == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


def test_weights_are_drawn_and_written_a_file_at_a_time(small, tmp_path: Path, monkeypatch):
    """The same in many files as in one, whole components apart; no more than a file's worth is there at a time."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    from export import shards

    one = open_source("random:zimage", tmp_path / "one").folder
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    sizes = []
    save = shards.save_file
    monkeypatch.setattr(shards, "save_file", lambda held, *rest, **more: (
        sizes.append((len(held), shards.size_bytes(held))), save(held, *rest, **more)
    ))  # fmt: skip
    many = open_source("random:zimage", tmp_path / "many").folder
    assert all(count == 1 or size <= 100_000 for count, size in sizes)
    assert len(list((many / "transformer").glob("*.safetensors"))) > 3
    for kind, part in ((ZImageTransformer2DModel, "transformer"), (Qwen3Model, "text_encoder")):
        first, second = (kind.from_pretrained(folder / part).state_dict() for folder in (one, many))
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(many.rglob("*.partial"))
