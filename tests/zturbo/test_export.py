"""`zturbo export` as a command: what it hands on, and how it ends."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from engine.bundle import load_bundle
from engine.errors import SourceError
from tests.zturbo.stand_ins import assert_refused


@pytest.fixture
def fake_export(monkeypatch, small_bundle, tmp_path):
    """export_bundle notes its arguments and answers with a bundle that is there already; models/emoji is a folder."""
    pytest.importorskip("torch")
    (tmp_path / "models" / "emoji").mkdir(parents=True)
    calls = []

    def export_bundle(source, out, *, precisions, schedulers, etas, device, origin, on_progress, **more):
        last = [more.pop(name) for name in ("loras", "lora_rank", "masked", "checked")]
        assert not more
        calls.append((str(source), str(out), precisions, schedulers, etas, device, origin, *last))
        on_progress("solver tables", 1, 2)
        return load_bundle(small_bundle)

    monkeypatch.setattr("export.bundle.export_bundle", export_bundle)
    return calls


def test_export_hands_on_source_place_precisions_and_device(zturbo, fake_export):
    zturbo("export", "models/emoji")
    zturbo("export", "models/emoji", "--out", "here", "--precision", "fp16", "--device", "cuda:1",
           "--schedulers", "euler dpmpp_2m", "--eta", "0.3", "--eta", "0.5",
           "--lora", "a.safetensors", "--lora", "b.safetensors:-0.5", "--lora-rank", "16", "--masked",
           "--unchecked")  # fmt: skip
    assert fake_export == [
        ("models/emoji", "trt_models/emoji", None, None, (), "cpu", "folder", [], 0, False, True),
        (
            "models/emoji",
            "here",
            ("fp16",),
            ("euler", "dpmpp_2m"),
            (0.3, 0.5),
            "cuda:1",
            "folder",
            [(Path("a.safetensors"), 1.0), (Path("b.safetensors"), -0.5)],
            16,
            True,
            False,
        ),
    ]


def test_export_makes_a_folder_of_random_weights_and_names_the_bundle_after_them(zturbo, fake_export, monkeypatch):
    made = []
    monkeypatch.setattr("export.random_models.write", lambda *given, **named: made.append((given[1], named)))
    zturbo("export", "random:sdxl@2", "--precision", "fp16")
    assert made == [("sdxl", {"seed": 2, "device": "cpu"})]
    folder = "trt_models/.sources/random-sdxl-2"
    out, origin = "trt_models/random-sdxl-2", "random:sdxl seed:2"
    assert fake_export == [(folder, out, ("fp16",), None, (), "cpu", origin, [], 0, False, True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["random:sdxxl"], "random:sdxl"),
        (["maker/model"], "HF_HUB_OFFLINE"),
        (["./maker/model"], "no such file or folder"),
        (["model.safetensors"], "unreadable"),
        (["model.ckpt"], "no such file or folder"),
        (["file.ckpt"], "runs the code in it"),
        (["file.safetensors"], "no header in a file of 4"),
        (["maker/model", "--config", "models/emoji"], "with a .safetensors checkpoint only"),
    ],
)
def test_sources_that_are_none(zturbo, tmp_path, monkeypatch, arguments, words):
    pytest.importorskip("torch")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("file.ckpt", "file.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x05")
    done = zturbo("export", *arguments)
    assert_refused(done, "OptionInvalid" if "--config" in arguments else "SourceError")
    assert words in done.stderr


def test_export_on_a_device_that_is_not_there(zturbo, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "models" / "emoji").mkdir(parents=True)
    assert_refused(zturbo("export", "models/emoji", "--device", "cuda:999"), "OptionInvalid")


def test_export_as_json(zturbo, fake_export):
    answer = json.loads(zturbo("export", "models/emoji", "--json").stdout)
    assert set(answer) == {"bundle", "sha256", "size_bytes", "seconds"}


def test_progress_is_told_line_by_line_where_stderr_is_no_terminal(zturbo, fake_export):
    assert "solver tables (1/2)" in zturbo("export", "models/emoji").stderr


def test_export_of_nothing(zturbo):
    pytest.importorskip("torch")
    assert_refused(zturbo("export", "nowhere"), "SourceError")


def test_export_below_a_regular_file(zturbo, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(zturbo("export", "models/emoji", "--out", "file/here"), "OutputError")


def test_export_without_torch_names_the_extra(zturbo, monkeypatch):
    real_import = builtins.__import__

    def no_torch(name, *rest):
        if name == "export.bundle":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    done = zturbo("export", "models/emoji")
    assert_refused(done, "ExtraMissing")
    assert "pip install 'zturbo[export]'" in done.stderr


def test_a_source_error_is_told(zturbo, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "models" / "emoji").mkdir(parents=True)

    def export_bundle(*_, **__):
        raise SourceError("model", actual="nothing", allowed="something", remedy="Mend it.")

    monkeypatch.setattr("export.bundle.export_bundle", export_bundle)
    assert_refused(zturbo("export", "models/emoji"), "SourceError")
