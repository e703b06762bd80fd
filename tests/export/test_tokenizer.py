"""A chat model's tokenizer as its bundle has it, beside what diffusers' ZImagePipeline reads; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from tokenizers import Tokenizer, processors
from transformers import Qwen2Tokenizer

from engine.errors import ExportMismatch, SourceError
from engine.tokens import MAX_TOKENS, MULTIPLE, Templated
from export import tokenizer as exported
from export.bundle import write_tokenizer
from export.families import open_model
from export.tokenizer import export_templated
from tests.tiny_qwen import PREFIX, SUFFIX, TEMPLATE, save_qwen_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_qwen_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def export(folder: Path) -> Templated:
    return export_templated(folder, folder.parent / "tokenizer.json", multiple=MULTIPLE, max_tokens=MAX_TOKENS)


def pipeline_ids(folder: Path, text: str) -> list[int]:
    """What the real pipeline's encode_prompt hands its text encoder, without the padding."""
    seen: dict[str, torch.Tensor] = {}

    def encoder(**inputs: Any) -> Any:
        seen.update(inputs)
        return SimpleNamespace(hidden_states=[torch.zeros(*inputs["input_ids"].shape, 1)] * 2)

    tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
    pipeline = ZImagePipeline(tokenizer=tokenizer, **parts)
    pipeline.text_encoder = encoder
    pipeline.encode_prompt(text, device=torch.device("cpu"), do_classifier_free_guidance=False)
    return [int(token) for token in seen["input_ids"][seen["attention_mask"]]]


def test_the_template_is_what_stands_around_a_text(folder: Path) -> None:
    entry = export(folder)
    assert (entry.prefix, entry.suffix, entry.multiple, entry.max_tokens) == (PREFIX, SUFFIX, 32, 512)
    assert Tokenizer.from_file(str(folder.parent / entry.file)).id_to_token(entry.pad_id) == "<|endoftext|>"


@pytest.mark.parametrize("text", [*exported.SAMPLES, *exported.EDGES, "cat " * 250])
def test_its_ids_are_those_that_the_real_pipeline_reads(folder: Path, text: str) -> None:
    entry = export(folder)
    reread = Tokenizer.from_file(str(folder.parent / entry.file))
    assert reread.encode(entry.prefix + text + entry.suffix).ids[:MAX_TOKENS] == pipeline_ids(folder, text)


def test_a_model_of_templated_prompts_gets_it_in_its_bundle(folder: Path, tiny_source: Path, tmp_path: Path) -> None:
    model = replace(open_model(tiny_source), source=folder.parent, multiple=32, max_tokens=512, max_chunks=1)
    (tmp_path / "out").mkdir()
    assert write_tokenizer(model, tmp_path / "out") == export(folder)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def refused(tmp_path: Path, kind: type[Exception], **changes: Any) -> str:
    save_qwen_tokenizer(tmp_path / "tokenizer", **changes)
    with pytest.raises(kind) as caught:
        export(tmp_path / "tokenizer")
    return str(caught.value)


TEMPLATES = {
    "none": (None, "no chat template that works"),
    "not one": ("{{ oops", "no chat template that works"),
    "one that raises": ("{{ raise_exception('never') }}", "never"),
    "without the text": ("user", "once between two others"),
    "the text twice": ("{{ messages[0].content }} {{ messages[0].content }}", "once between two others"),
    "another for each text": ("{{ messages[0].content | length }}: {{ messages[0].content }}", "once between two"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_puts_no_text_between_two_others_is_refused(tmp_path: Path, name: str) -> None:
    template, reason = TEMPLATES[name]
    assert reason in refused(tmp_path, SourceError, chat_template=template)


TRIMMING = TEMPLATE.replace("message.content +", "message.content | trim +")
SHORTENING = TEMPLATE.replace("message.content +", "message.content[:300] +")


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"chat_template": TRIMMING}, "a cat"), ({"chat_template": SHORTENING}, "word word"),
     ({"truncation_side": "left"}, "word word")],
)  # fmt: skip
def test_what_a_text_between_two_others_does_not_say_is_found(tmp_path: Path, changes: Any, text: str) -> None:
    assert text in refused(tmp_path, ExportMismatch, **changes)


def test_padding_on_the_left_is_the_runtimes_own_matter(tmp_path: Path) -> None:
    save_qwen_tokenizer(tmp_path / "tokenizer", padding_side="left")
    assert export(tmp_path / "tokenizer").prefix == PREFIX


def test_a_token_that_is_added_and_cut_with_the_text_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a tokenizer keeps its own last token where it cuts; the runtime cuts whatever is last."""
    made = save_qwen_tokenizer(tmp_path / "tokenizer")
    after = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", made.eos_token_id)])
    made.backend_tokenizer.post_processor = after
    monkeypatch.setattr(exported, "_read", lambda *_: made)
    with pytest.raises(ExportMismatch, match="word word"):
        export(tmp_path / "tokenizer")


@pytest.mark.parametrize("damage", ["none", "no JSON"])
def test_no_tokenizer_is_a_source_error(tmp_path: Path, damage: str) -> None:
    save_qwen_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.unlink() if damage == "none" else path.write_text("{")
    with pytest.raises(SourceError):
        export(tmp_path / "tokenizer")


def test_a_folder_of_vocabulary_and_merges_gives_the_same_ids(folder: Path, tmp_path: Path) -> None:
    whole = export(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    reread = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in model["merges"]))
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (folder / "added_tokens.json").write_text(json.dumps({one["content"]: one["id"] for one in added}))
    (folder / "tokenizer.json").unlink()
    assert export(folder) == whole
    text = PREFIX + "a cat, naïve" + SUFFIX
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == reread.encode(text).ids
