"""What the model card says of the shipped files is so."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import world
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def header(path: Path) -> dict[str, dict]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        fields = json.loads(file.read(length))
    fields.pop("__metadata__", None)
    return fields


@pytest.fixture(scope="module")
def tokenizers(emoji):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(emoji / "tokenizer"), Tokenizer.from_file(
        str(emoji / "tokenizer/tokenizer.json")
    )


def test_the_model_is_small_and_fp16(emoji):
    files = [path for path in emoji.rglob("*") if path.is_file()]
    files = [path for path in files if not any(part[0] in "._" for part in path.relative_to(emoji).parts[:-1])]
    assert sum(path.stat().st_size for path in files) <= 18_000_000
    for part, name in WEIGHTS.items():
        assert {tensor["dtype"] for tensor in header(emoji / part / name).values()} == {"F16"}, part


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_card_counts_the_parameters(emoji, part):
    count = sum(math.prod(tensor["shape"]) for tensor in header(emoji / part / WEIGHTS[part]).values())
    assert f"{count:,}" in (emoji / "README.md").read_text(encoding="utf-8")


def test_no_path_of_a_machine_in_any_config(emoji):
    for path in emoji.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text, path
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_defaults_are_the_cards(emoji):
    defaults = json.loads((emoji / "generation_config.json").read_text(encoding="utf-8"))
    assert f"`guidance_scale={defaults['guidance_scale']}`" in (emoji / "README.md").read_text(encoding="utf-8")


def test_every_word_of_the_prompts_is_one_token(tokenizers):
    slow, _ = tokenizers
    words = {word for phrase in (*world.OBJECT_WORDS, *world.BACKGROUND_WORDS) for word in phrase.split()}
    assert {word for word in words if len(slow(word).input_ids) != 3} == set()


@given(text=st.text(max_size=60))
def test_both_tokenizers_agree_and_nothing_is_unencodable(tokenizers, text):
    slow, fast = tokenizers
    ids = slow(text).input_ids
    assert ids == fast.encode(text).ids
    assert ids[0] == slow.bos_token_id
    assert ids[-1] == slow.eos_token_id
    assert len(ids) > 2 or not any(char.isalnum() for char in text)
    assert slow.unk_token_id not in ids[1:-1] or "<|" in text


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"])
def test_four_schedulers_start_from_noise_alone(emoji, name):
    import diffusers

    scheduler = getattr(diffusers, f"{name}Scheduler").from_pretrained(emoji / "scheduler")
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999
    assert float(scheduler.alphas_cumprod[-1]) ** 0.5 < 0.003
    assert not scheduler.config.get("clip_sample", False)
    assert scheduler.config.prediction_type == "v_prediction"
