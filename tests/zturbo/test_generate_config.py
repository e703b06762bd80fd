"""`zturbo generate --config`: the file's bundle, options and defaults, over which the command line wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.zturbo.stand_ins import FakePipeline, assert_refused


@pytest.fixture
def loaded(monkeypatch, fake_pipeline):
    """What Pipeline.load was asked for, call by call."""
    asked, load = [], FakePipeline.load
    monkeypatch.setattr(
        FakePipeline, "load", lambda folder, **options: asked.append((str(folder), options)) or load(folder)
    )
    return asked


@pytest.fixture
def config(small_bundle, tmp_path):
    path = tmp_path / "etc" / "config.yaml"
    path.parent.mkdir()
    path.write_text(
        "bundle: ../trt_models/small\nbackend: onnxruntime\nthreads: 2\ncapture: false\nprecision: fp32\n"
        "out: pictures\n"
        "defaults: {num_inference_steps: 4, guidance_scale: 2.5, seed: 9, num_images: 2, negative_prompt: blurry}\n"
    )
    return path


def test_the_bundle_may_be_left_out(zturbo, config, loaded, fake_pipeline, small_bundle):
    done = zturbo("generate", "--config", config, "a cat", "--json")
    assert done.exit_code == 0, done.stderr
    (folder, options), (request,) = loaded[0], fake_pipeline.requests
    assert Path(folder).resolve() == small_bundle.resolve()
    assert (options["backend"], options["threads"], options["capture"], options["precision"]) == (
        "onnxruntime", 2, False, "fp32",
    )  # fmt: skip
    assert (request.num_inference_steps, request.guidance_scale, request.seed, request.num_images) == (4, 2.5, 9, 2)
    assert request.negative_prompt == "blurry"
    assert [Path(path).parent for path in json.loads(done.stdout)["paths"]] == [config.parent / "pictures"] * 2


def test_the_command_line_wins(zturbo, config, loaded, fake_pipeline, small_bundle):
    other = small_bundle.rename(small_bundle.with_name("other"))
    done = zturbo(
        "generate", other, "a cat", "--config", config, "--steps", 1, "--guidance", "0,3", "--seed", "1,2",
        "--negative", "", "--threads", 3, "--capture", "--backend", "pytorch", "--precision", "fp16", "--device", "cpu",
        "--out", "here", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (folder, options), (request,) = loaded[0], fake_pipeline.requests
    assert folder == str(other)
    assert options == {"backend": "pytorch", "device": "cpu", "precision": "fp16", "threads": 3, "capture": True,
                       "cache_mib": 256, "max_batch_size": None}  # fmt: skip
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (1, (0.0, 3.0), (1, 2))
    assert (request.negative_prompt, request.num_images) == ("", 2)
    assert json.loads(done.stdout)["paths"] == ["here/image-0.png", "here/image-1.png"]


def test_without_a_config_nothing_changes(zturbo, small_bundle, loaded, fake_pipeline):
    zturbo("generate", small_bundle, "a cat")
    assert loaded == [(str(small_bundle), {"backend": "auto", "device": None, "precision": None, "threads": None,
                                           "capture": True, "cache_mib": 256, "max_batch_size": None})]  # fmt: skip
    assert fake_pipeline.requests[0].seed == 0


def test_a_config_without_a_bundle_needs_one(zturbo, small_bundle, loaded, tmp_path):
    (tmp_path / "c.yaml").write_text("threads: 1")
    assert_refused(zturbo("generate", "--config", "c.yaml", "a cat"), "ConfigInvalid")
    assert zturbo("generate", "--config", "c.yaml", small_bundle, "a cat").exit_code == 0


@pytest.mark.parametrize("text", ["thread: 1", "threads: many", "a: *b", "defaults: {seed: x}", "generator: {x: 1}"])
def test_bad_configs_are_typed_errors(zturbo, small_bundle, loaded, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert_refused(zturbo("generate", "--config", "c.yaml", small_bundle, "a cat"), "ConfigInvalid")
    assert_refused(zturbo("generate", "--config", "none.yaml", small_bundle, "a cat"), "ConfigInvalid")
    assert not loaded


def test_warnings_of_the_older_schema_are_remarks(zturbo, small_bundle, loaded, tmp_path):
    (tmp_path / "older.yaml").write_text(
        "generator: {engine_path: trt_models/small, use_xformers: true}\nperformance: {vae_slicing: true}"
    )
    done = zturbo("generate", "--config", "older.yaml", "a cat", "--json")
    assert done.exit_code == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ConfigWarning: older.yaml, ")]
    assert [line.split(":")[1] for line in lines] == [
        " older.yaml, generator.use_xformers", " older.yaml, performance.vae_slicing",
    ]  # fmt: skip
    json.loads(done.stdout)
