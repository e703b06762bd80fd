"""`zturbo export` and `zturbo build` as commands: what they hand on, and how they end."""

from __future__ import annotations

import builtins
import json

import pytest

from engine.build import BuildEvent
from engine.bundle import load_bundle
from engine.errors import SourceError
from engine.plan import read_info
from tests.zturbo.stand_ins import assert_refused, write_plan


@pytest.fixture
def fake_export(monkeypatch, small_bundle):
    """export_bundle notes its arguments and answers with a bundle that is there already."""
    pytest.importorskip("torch")
    calls = []

    def export_bundle(source, out, *, precisions, on_progress):
        calls.append((str(source), str(out), precisions))
        on_progress("solver tables", 1, 2)
        return load_bundle(small_bundle)

    monkeypatch.setattr("export.bundle.export_bundle", export_bundle)
    return calls


def test_export_hands_on_source_place_and_precisions(zturbo, fake_export):
    zturbo("export", "models/emoji")
    zturbo("export", "models/emoji", "--out", "here", "--precision", "fp16")
    assert fake_export == [
        ("models/emoji", "trt_models/emoji", ("fp32", "fp16")),
        ("models/emoji", "here", ("fp16",)),
    ]


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


def test_build_hands_on_profiles_and_tells_each_plan(zturbo, small_bundle, monkeypatch):
    calls = []

    def build_engines(folder, target, profiles, *, precision, jobs, on_progress):
        calls.append((folder, target, profiles, precision, jobs))
        event = {"graph": "decoder", "profile": "128@2", "reason": "no plan", "total": 1}
        on_progress(BuildEvent(kind="started", seconds=None, done=0, **event))
        on_progress(BuildEvent(kind="built", seconds=31.4, done=1, **event))
        return [read_info(write_plan(folder), "")]

    monkeypatch.setattr("engine.build.build_engines", build_engines)
    done = zturbo(
        "build", small_bundle, "--target", "tensorrt_rtx", "--profiles", "128@2 256@1-4", "--precision", "fp32",
        "--jobs", 2, "--json",
    )  # fmt: skip
    assert calls == [(small_bundle, "tensorrt_rtx", ["128@2", "256@1-4"], "fp32", 2)]
    assert "built decoder 128@2 in 31.4 s (no plan)" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["plans"][0]["graph"] == "decoder"
    assert answer["folder"].endswith("engines")


def test_build_for_a_target_that_is_none(zturbo, small_bundle):
    assert_refused(zturbo("build", small_bundle, "--target", "abacus"), "OptionInvalid")


def test_a_source_error_is_told(zturbo, monkeypatch):
    pytest.importorskip("torch")

    def export_bundle(*_, **__):
        raise SourceError("model", actual="nothing", allowed="something", remedy="Mend it.")

    monkeypatch.setattr("export.bundle.export_bundle", export_bundle)
    assert_refused(zturbo("export", "models/emoji"), "SourceError")
