"""Generator: one config, prompts in; paths, seconds and metadata out, on the fake backend and once on ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zturbo
from engine.errors import ConfigInvalid, OptionInvalid, OutputError, RequestInvalid
from runtime.backends import Verdict
from tests.fake_backend import FakeBackend
from zturbo import Config, Generator, Pipeline, Request

SIZE = {"width": 136, "height": 128, "num_inference_steps": 3}


@pytest.fixture
def backend(monkeypatch):
    """What every bundle is opened on."""
    backend = FakeBackend()
    monkeypatch.setattr("runtime.pipeline.open_backend", lambda name, *_: (backend, [Verdict(name, None)]))
    return backend


@pytest.fixture
def config(backend, small_bundle, tmp_path):
    return Config(bundle=str(small_bundle), out=str(tmp_path / "out"))


def pixels(paths):
    return [np.asarray(Image.open(path)) for path in paths]


def test_paths_seconds_and_metadata(config, tmp_path):
    with Generator(config) as generator:
        output_paths, gen_time, metadata = generator.generate(
            prompt="a cat", negative_prompt="blurry", width=136, height=128, num_inference_steps=3, num_images=4,
            seed=7, cfg_scale=4.5,
        )  # fmt: skip
        expected = generator.pipeline.generate(
            Request(prompt="a cat", negative_prompt="blurry", **SIZE, num_images=4, seed=7, guidance_scale=4.5)
        )
    assert output_paths == [str(tmp_path / "out" / f"image-{k}.png") for k in range(4)]
    assert all(np.array_equal(one, array) for one, array in zip(pixels(output_paths), expected.arrays, strict=True))
    assert type(gen_time) is float
    assert gen_time > 0
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    pictures = metadata.pop("images")
    assert metadata | {"conditioning_cached": True} == expected.metadata
    assert pictures == [
        {"path": path, "seed": 7, "image": k, "guidance_scale": 4.5} for k, path in enumerate(output_paths)
    ]


def test_arguments_may_come_by_position(config):
    with Generator(config) as generator:
        metadata = generator.generate("a cat", "blurry", 136, 128, 3, 2, 7, 4.5)[2]
    named = (
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_inference_steps",
        "num_images",
        "seed",
        "guidance_scale",
    )
    assert [metadata[name] for name in named] == ["a cat", "blurry", 136, 128, 3, 2, 7, 4.5]


@pytest.mark.parametrize("seed", [{}, {"seed": None}, {"seed": -1}], ids=["left out", "None", "-1"])
def test_a_seed_that_is_not_named_is_random_and_recorded(config, seed):
    with Generator(config) as generator:
        first, second = (generator.generate("a cat", **SIZE, num_images=2, **seed) for _ in range(2))
        again = generator.generate("a cat", **SIZE, num_images=2, seed=first[2]["seed"])
    assert first[2]["seed"] != second[2]["seed"]
    assert not np.array_equal(pixels(first[0]), pixels(second[0]))
    assert np.array_equal(pixels(first[0]), pixels(again[0]))
    assert {(one["seed"], one["image"]) for one in first[2]["images"]} == {(first[2]["seed"], k) for k in range(2)}


def test_seeds_and_scales_per_image(config):
    with Generator(config) as generator:
        paths, _, metadata = generator.generate("a cat", **SIZE, seed=[3, -1, 9], cfg_scale=[1.0, 4.5, 0.0])
        for path, picture in zip(paths, metadata["images"], strict=True):
            assert picture["image"] == 0
            alone = generator.generate("a cat", **SIZE, seed=picture["seed"], cfg_scale=picture["guidance_scale"])
            assert np.array_equal(pixels([path]), pixels(alone[0]))
    assert [one["seed"] for one in metadata["images"]] == metadata["seed"]
    assert metadata["seed"][::2] == [3, 9]


def test_what_is_left_out_is_the_configs_then_the_bundles(config, small_bundle, tmp_path):
    values = {"bundle": str(small_bundle), "out": str(tmp_path / "mine"), "max_batch_size": 1,
              "defaults": {"seed": 5, "num_images": 2, "scheduler": "ancestral", "guidance_scale": 1.0}}  # fmt: skip
    with Generator(values) as generator:
        metadata = generator.generate("a cat")[2]
        assert generator.generate("a cat", seed=-1)[2]["seed"] != 5
        assert {dims["samples"] for dims in generator.pipeline.backend.allocated} == {1}
    assert (metadata["seed"], metadata["num_images"], metadata["scheduler"]) == (5, 2, "ancestral")
    assert (metadata["guidance_scale"], metadata["height"], metadata["width"]) == (1.0, 128, 136)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [f"image-{k}.png" for k in range(4)]


def test_a_file_and_the_older_schema(backend, small_bundle, tmp_path, monkeypatch):
    path = tmp_path / "older.yaml"
    path.write_text("generator: {engine_path: trt_models/small/engines, backend: onnx, use_xformers: true}")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(zturbo.ConfigWarning, match="generator.use_xformers"):
        generator = Generator(path)
    with generator:
        paths, *_ = generator.generate("a cat", num_inference_steps=1)
        assert generator.pipeline.verdicts[-1].name == "onnxruntime"
    assert paths == ["out/image-0.png"]
    assert backend.events[-1] == "close"


def test_closed_means_closed(config):
    generator = Generator(config)
    generator.close()
    generator.close()
    with pytest.raises(OptionInvalid, match="got closed"):
        generator.generate("a cat")


def test_what_is_wrong_is_a_typed_error_and_leaves_nothing(config, tmp_path):
    with Generator(config) as generator:
        for arguments in (
            {"width": 7},
            {"cfg_scale": float("nan")},
            {"seed": "7"},
            {"num_images": 0},
            {"seed": [1, -2]},
        ):
            with pytest.raises(RequestInvalid):
                generator.generate("a cat", **arguments)
        with pytest.raises(RequestInvalid):
            generator.generate("")
    assert not (tmp_path / "out").exists()


def test_a_config_without_a_bundle_or_a_place_to_write(small_bundle, backend, tmp_path):
    with pytest.raises(ConfigInvalid, match="config, bundle: got none"):
        Generator({})
    with pytest.raises(ConfigInvalid, match="Did you mean 'bundle'"):
        Generator({"bundl": "x"})
    with pytest.raises(ConfigInvalid, match="nowhere"):
        Generator("nowhere.yaml")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        Generator(Config(bundle=str(small_bundle), out=str(tmp_path / "file" / "out")))
    assert not backend.events


def test_on_onnx_runtime(tiny_bundle, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"bundle: {tiny_bundle}\nbackend: onnxruntime\nthreads: 1\nmax_batch_size: 2\n"
        "defaults: {height: 128, width: 128, num_inference_steps: 2}\nout: pictures\n"
    )
    with Generator(path) as generator:
        paths, gen_time, metadata = generator.generate("a cat", num_images=3, seed=11, cfg_scale=3.0)
    with Pipeline.load(tiny_bundle, "onnxruntime", threads=1, max_batch_size=2) as pipeline:
        asked = Request(prompt="a cat", height=128, width=128, num_inference_steps=2, num_images=3, seed=11,
                        guidance_scale=3.0)  # fmt: skip
        expected = pipeline.generate(asked)
    assert [Path(one).parent for one in paths] == [tmp_path / "pictures"] * 3
    assert np.array_equal(pixels(paths), expected.arrays)
    assert gen_time > 0
    assert metadata["backend"] == "onnxruntime"
