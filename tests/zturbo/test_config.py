"""config.yaml: every key read, checked and put to use; what is wrong is told with file, key and nearest known key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import msgspec
import pytest

from engine.binding import PlanPrecision
from engine.errors import ConfigInvalid, RequestInvalid
from runtime.backends import NAMES
from runtime.pipeline import MAX_BATCH_SIZE, MAX_CACHE_MIB, MAX_THREADS, Pipeline
from runtime.request import Request
from zturbo.config import DEFAULTS, LOADING, PER_CALL, Backend, Config, Precision, as_config, load_config
from zturbo.yaml_file import parse_yaml

WHOLE = """
bundle: bundles/small
backend: onnxruntime
device: cpu
precision: fp16
threads: 3
capture: false
cache_mib: 0
max_batch_size: 2
out: pictures
defaults: {num_inference_steps: 4, guidance_scale: [3, 7.5], negative_prompt: blurry, height: 128, width: 136, seed: -1,
  scheduler: ddim, num_images: 2}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path):
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    assert caught.value.remedy
    return caught.value


def test_every_key_is_read(write, tmp_path):
    config = load_config(write(WHOLE))
    options = {"backend": "onnxruntime", "device": "cpu", "precision": "fp16", "threads": 3, "capture": False,
               "cache_mib": 0, "max_batch_size": 2}  # fmt: skip
    assert config.load_options() == options
    assert (config.bundle, config.out) == (str(tmp_path / "bundles" / "small"), str(tmp_path / "pictures"))
    request = config.request("a cat")
    assert (request.num_inference_steps, request.guidance_scale, request.negative_prompt) == (4, (3, 7.5), "blurry")
    assert (request.height, request.width, request.seed, request.num_images) == (128, 136, -1, 2)
    assert request.scheduler == "ddim"
    for key in Config.__struct_fields__:
        assert f"{key}:" in WHOLE, f"{key} is not tried here"


def test_keys_and_limits_are_those_of_what_they_are_for():
    assert get_args(Backend) == ("auto", *NAMES)
    assert get_args(Precision) == get_args(PlanPrecision)
    assert set(Config.__struct_fields__) == {*LOADING, "bundle", "out", "defaults"}
    assert {*DEFAULTS, *PER_CALL} >= {field.name for field in dataclasses.fields(Request)}
    assert not {*DEFAULTS} & {*PER_CALL}
    for key, most in (("threads", MAX_THREADS), ("cache_mib", MAX_CACHE_MIB), ("max_batch_size", MAX_BATCH_SIZE)):
        assert getattr(Config(**{key: most}), key) == most
        with pytest.raises(ConfigInvalid):
            Config(**{key: most + 1})


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "~"])
def test_an_empty_file_is_all_defaults(write, text):
    assert load_config(write(text)) == Config()
    assert Config().request("a cat").metadata() == Request(prompt="a cat").metadata()


@pytest.mark.parametrize("folder", [".", "a, b/c"])
def test_relative_paths_are_relative_to_the_file(write, folder, tmp_path, monkeypatch):
    write("bundle: ../bundle\nout: pictures", f"{folder}/config.yaml")
    monkeypatch.chdir(tmp_path / folder)
    for path in (Path("config.yaml"), tmp_path / folder / "config.yaml"):
        config = load_config(path)
        assert Path(config.out).is_absolute()
        assert Path(config.out) == tmp_path / folder / "pictures"
        assert Path(config.bundle).resolve() == (tmp_path / folder / ".." / "bundle").resolve()


def test_absolute_paths_and_a_folder_that_is_not_named_stay(write):
    config = load_config(write("bundle: /models/x"))
    assert (config.bundle, config.out) == ("/models/x", "out")


UNKNOWN = {
    "bundel: x": ("bundel", "Did you mean 'bundle'?"),
    "Threads: 2": ("Threads", "Did you mean 'threads'?"),
    "max_batch: 2": ("max_batch", "Did you mean 'max_batch_size'?"),
    "generatr: {}": ("generatr", "Did you mean 'generator'?"),
    "xyz: 1": ("xyz", "Take it out."),
    "'threads ': 1": ("'threads '", "Did you mean 'threads'?"),
    f"? {'x' * 1000}\n: 1": ("x" * 60, "Take it out."),
    "'': 1": ("''", "Take it out."),
    "defaults: {guidance: 3}": ("defaults.guidance", "Did you mean 'guidance_scale'?"),
    "defaults: {num_inference_step: 3}": ("defaults.num_inference_step", "Did you mean 'num_inference_steps'?"),
    "defaults: {prompt: a cat}": ("defaults.prompt", None),
    "defaults: {latents: 1}": ("defaults.latents", None),
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_keys_name_key_nearest_and_file(write, text):
    path = write(text, "a, b.yaml")
    error = refused(path)
    key, remedy = UNKNOWN[text]
    assert error.subject == f"{path}, {key}"
    assert error.actual == "an unknown key"
    assert remedy in (None, error.remedy)
    assert ("bundle" if "." not in key else "guidance_scale") in error.allowed


WRONG = {
    "bundle: 1": ("bundle", "1", "a bundle's folder"),
    "bundle: ''": ("bundle", "''", "a bundle's folder"),
    'bundle: "a\\0b"': ("bundle", "'a\\x00b'", "a bundle's folder"),
    "bundle: [a]": ("bundle", "['a']", "a bundle's folder"),
    "out: ~": ("out", "None", "a folder for pictures"),
    "backend: onnx": ("backend", "'onnx'", "auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch"),
    "backend: ~": ("backend", "None", "auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch"),
    "precision: int8": ("precision", "'int8'", "fp32, fp16 or bf16"),
    "precision: no": ("precision", "False", "fp32, fp16 or bf16"),
    "device: 0": ("device", "0", "the backend's word for it: cpu, cuda, cuda:1 …"),
    "threads: 0": ("threads", "0", "an integer from 1 to 1024"),
    "threads: '4'": ("threads", "'4'", "an integer from 1 to 1024"),
    "threads: 4.0": ("threads", "4.0", "an integer from 1 to 1024"),
    "threads: true": ("threads", "True", "an integer from 1 to 1024"),
    "threads: 99999999999999999999999": ("threads", "99999999999999999999999", "an integer from 1 to 1024"),
    "capture: 1": ("capture", "1", "true or false"),
    "capture: 'yes'": ("capture", "'yes'", "true or false"),
    "cache_mib: -1": ("cache_mib", "-1", "an integer from 0 to 1048576"),
    "max_batch_size: 0": ("max_batch_size", "0", "an integer from 1 to 1024"),
    "defaults: []": ("defaults", "[]", "fields of a request"),
    "defaults: 7": ("defaults", "7", "fields of a request"),
    "defaults: {seed: x}": ("defaults.seed", "'x'", "an integer from -1 to 9223372036854775807"),
    "defaults: {seed: [1, true]}": ("defaults.seed", "True", "an integer from -1 to 9223372036854775807"),
    "defaults: {seed: [1, 2], num_images: 3}": (
        "defaults.seed", "2 of them", "one value, or one per image: 3 (num_images)"
    ),
    "defaults: {guidance_scale: .nan}": ("defaults.guidance_scale", "nan", "a finite number from 0 to 50"),
    "defaults: {height: 1.5}": ("defaults.height", "1.5", "an integer from 1 to 65536"),
    "defaults: {scheduler: 7}": ("defaults.scheduler", "7", "a scheduler's name"),
    "defaults: {negative_prompt: 7}": ("defaults.negative_prompt", "int", "text of 0 to 4000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_wrong_values_name_file_and_key(write, text):
    path = write(text)
    error = refused(path)
    key, actual, allowed = WRONG[text]
    assert (error.subject, error.actual, error.allowed) == (f"{path}, {key}", actual, allowed)


@pytest.mark.parametrize("text", ["[bundle]", "bundle", "7"])
def test_what_has_no_keys(write, text):
    assert refused(write(text)).allowed == "keys with values"


@pytest.mark.parametrize(("key", "value"), [("threads", "4"), ("bundle", Path("x")), ("defaults", {"steps": 3})])
def test_a_config_made_in_python_is_checked(key, value):
    with pytest.raises(ConfigInvalid, match=f"config, {key}"):
        Config(**{key: value})
    with pytest.raises(ConfigInvalid, match=f"config, {key}"):
        as_config({key: value})


def test_a_config_is_frozen_and_has_no_other_fields():
    config = Config(threads=2)
    with pytest.raises(AttributeError):
        config.threads = 3
    with pytest.raises(TypeError):
        Config(thread=2)
    assert as_config(config) is config
    assert as_config({"threads": 2, "bundle": "x"}) == msgspec.structs.replace(config, bundle="x")


def test_a_call_wins_over_the_defaults():
    config = Config(defaults={"num_images": 4, "seed": 7, "guidance_scale": 2.0, "height": 128})
    request = config.request("a cat", seed=0, height=None, guidance_scale=0.0)
    assert (request.seed, request.height, request.guidance_scale, request.num_images) == (0, 128, 0.0, 4)
    assert config.request("a cat", seed=[1, 2]).num_images == 2
    assert config.request("a cat", seed=[1, 2], num_images=2).num_images == 2
    with pytest.raises(RequestInvalid, match="request, width"):
        config.request("a cat", width=0)


def test_a_pipeline_is_loaded_as_it_says(monkeypatch):
    asked = []
    monkeypatch.setattr(
        Pipeline, "load", lambda folder, **options: asked.append((folder, options)) or SimpleNamespace()
    )
    config = Config(bundle="here", backend="pytorch", threads=3, max_batch_size=2)
    config.load_pipeline()
    config.load_pipeline("there", threads=4, device=None, capture=False)
    assert asked[0] == ("here", config.load_options())
    assert asked[1] == ("there", {**config.load_options(), "threads": 4, "capture": False})
    with pytest.raises(ConfigInvalid, match="config, bundle: got none"):
        Config().load_pipeline()


def test_the_documented_example(root):
    path = root / "docs" / "config.yaml"
    config = load_config(path)
    assert Path(config.bundle).resolve() == root / "trt_models" / "emoji"
    assert Path(config.out).resolve() == root / "out"
    assert config.request("a cat").num_inference_steps == 20
    text = path.read_text(encoding="utf-8")
    for key in (*Config.__struct_fields__, *DEFAULTS):
        assert f"{key}: " in text or f"{key}:\n" in text, f"{key} is not documented"
    for key, value in (("device", "cuda:1"), ("precision", "fp16"), ("threads", 4)):  # commented out there
        assert f"\n# {key}: {value} " in text
        assert getattr(as_config(parse_yaml(text.replace(f"\n# {key}", f"\n{key}"), path)), key) == value


def test_a_config_is_json():
    assert json.loads(msgspec.json.encode(Config(defaults={"seed": 3})))["defaults"] == {"seed": 3}


def test_a_blank_bundle_is_none():
    assert as_config({"bundle": None}).bundle is None


def test_a_call_that_says_how_many_images_there_are_overrules_lists_of_the_defaults():
    config = Config(defaults={"seed": [3, 5], "guidance_scale": [2.0, 4.0], "num_inference_steps": 4})
    assert config.request("a cat").num_images == 2
    request = config.request("a cat", num_images=3)
    assert (request.num_images, request.seed, request.guidance_scale) == (3, 0, None)
    request = config.request("a cat", seed=[7, 8, 9])
    assert (request.num_images, request.seed, request.num_inference_steps) == (3, (7, 8, 9), 4)


def test_what_belongs_to_an_image_has_no_default():
    with pytest.raises(ConfigInvalid, match="strength"):
        Config(defaults={"strength": 0.6})
