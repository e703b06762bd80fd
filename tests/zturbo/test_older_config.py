"""The older schema: what has a meaning is mapped, one named warning for each key that has none, types checked."""

from __future__ import annotations

import warnings
from typing import get_args, get_type_hints

import msgspec
import pytest
import yaml

from engine.errors import ConfigInvalid
from zturbo.config import Config, as_config, load_config
from zturbo.older_config import MEANINGLESS, ConfigWarning, OlderConfig

MAPPED = {
    "generator.backend": ("onnx", {"backend": "onnxruntime"}),
    "generator.engine_path": ("engines", {"bundle": "engines"}),
    "generator.mixed_precision": ("fp16", {"precision": "fp16"}),
    "generator.device": ("cuda:1", {"device": "cuda:1"}),
    "performance.max_batch_size": (4, {"max_batch_size": 4}),
}
USELESS = {
    "generator.use_xformers": True,
    "generator.enable_gradient_checkpointing": False,
    "performance.cache_clear_interval": 10,
    "performance.attention_slicing": True,
    "performance.vae_slicing": False,
    "resource.oom_retry_delay": 0.5,
    "resource.cpu_offload.enabled": False,
    "resource.cpu_offload.offload_params": True,
    "resource.cpu_offload.buffer_device": "cpu",
}
WHOLE = """
generator: {backend: tensorrt, engine_path: engines/unet.plan, use_xformers: true, enable_gradient_checkpointing: false,
  mixed_precision: no, device: cuda}
performance: {max_batch_size: 4, cache_clear_interval: 100, attention_slicing: false, vae_slicing: true}
resource:
  oom_retry_delay: 1
  cpu_offload: {enabled: true, offload_params: true, buffer_device: cpu}
"""


def nested(key, value):
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def read(values):
    """The config, and the warnings it made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = as_config(values)
    return config, caught


def leaves(kind, above=""):
    for name, hint in get_type_hints(kind).items():
        inner = [one for one in get_args(hint) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        yield from leaves(inner[0], f"{above}{name}.") if inner else [f"{above}{name}"]


def test_every_key_is_tried():
    assert set(leaves(OlderConfig)) == {*MAPPED, *USELESS}
    assert set(USELESS) == set(MEANINGLESS)


@pytest.mark.parametrize("key", MAPPED)
def test_keys_with_a_meaning_are_mapped_without_a_warning(key):
    value, expected = MAPPED[key]
    config, caught = read(nested(key, value))
    assert config == Config(**expected)
    assert not caught


@pytest.mark.parametrize("key", USELESS)
def test_each_key_without_a_meaning_is_one_named_warning(key):
    config, caught = read(nested(key, USELESS[key]))
    assert config == Config()
    assert [warning.category for warning in caught] == [ConfigWarning]
    message = str(caught[0].message)
    assert message.startswith(f"config, {key}: has no meaning here, ")
    assert MEANINGLESS[key] in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("generator.backend", "tensorrt", {"backend": "tensorrt"}),
        ("generator.backend", "pytorch", {"backend": "pytorch"}),
        ("generator.mixed_precision", "bf16", {"precision": "bf16"}),
        ("generator.mixed_precision", "no", {"precision": "fp32"}),
        ("generator.mixed_precision", False, {"precision": "fp32"}),
        ("generator.engine_path", None, {}),
        ("generator.backend", None, {}),
        ("generator", None, {}),
        ("resource.cpu_offload", {}, {}),
    ],
)
def test_what_each_value_means(key, value, expected):
    config, caught = read(nested(key, value))
    assert config == Config(**expected)
    assert not caught


def test_a_whole_file(tmp_path):
    path = tmp_path / "older.yaml"
    path.write_text(WHOLE)
    with pytest.warns(ConfigWarning) as caught:
        config = load_config(path)
    assert config.load_options() == {
        "backend": "tensorrt", "device": "cuda", "precision": "fp32", "threads": None, "capture": True,
        "cache_mib": 256, "max_batch_size": 4,
    }  # fmt: skip
    assert config.bundle == str(tmp_path / "engines" / "unet.plan")
    assert [str(one.message).partition(":")[0] for one in caught] == [f"{path}, {key}" for key in USELESS]
    assert {one.filename for one in caught} == {__file__}


@pytest.mark.parametrize("engine", [
    ".", "bundle.json", "engines", "engines/tensorrt-10", "engines/tensorrt-10/256@2-fp16/denoiser.plan",
])  # fmt: skip
def test_the_bundle_that_holds_the_engines(tmp_path, small_bundle, engine):
    """Engines of a bundle are found where they are; they need not be built yet."""
    path = tmp_path / "older.yaml"
    path.write_text(f"generator: {{engine_path: trt_models/small/{engine}}}")
    assert load_config(path).bundle == str(small_bundle)
    path.write_text(f"generator: {{engine_path: {small_bundle / engine}}}")
    assert load_config(path).bundle == str(small_bundle)


def test_a_folder_far_above_is_not_the_bundle(small_bundle):
    far = str(small_bundle / "a/b/c/d/e/f")
    assert as_config(nested("generator.engine_path", far)).bundle == far


SWITCH, SLICES = "true or false", "true, false, auto, max or a slice's size"
BACKENDS, PRECISIONS = "tensorrt, pytorch or onnx", "fp16, bf16 or no"
BAD = [
    ("generator.backend", "onnxruntime", BACKENDS), ("generator.backend", 1, BACKENDS), ("generator.device", 0, "text"),
    ("generator.engine_path", 7, "text"), ("generator.use_xformers", "yes", SWITCH),
    ("generator", [], "keys with values"),
    ("generator.use_xformers", 1, SWITCH), ("generator.enable_gradient_checkpointing", "", SWITCH),
    ("generator.mixed_precision", True, PRECISIONS), ("generator.mixed_precision", "fp32", PRECISIONS),
    ("performance.max_batch_size", 0, "an integer from 1 on"), ("performance", "fast", "keys with values"),
    ("performance.max_batch_size", "4", "an integer from 1 on"), ("performance.attention_slicing", "half", SLICES),
    ("performance.max_batch_size", 4.0, "an integer from 1 on"), ("performance.attention_slicing", 0, SLICES),
    ("performance.cache_clear_interval", -1, "an integer from 0 on"), ("performance.vae_slicing", 1.0, SWITCH),
    ("resource.oom_retry_delay", "1 s", "seconds, 0 or more"), ("resource.oom_retry_delay", -1, "seconds, 0 or more"),
    ("resource.cpu_offload", True, "keys with values"), ("resource.cpu_offload.enabled", "no", SWITCH),
    ("resource.cpu_offload.offload_params", 1, SWITCH), ("resource.cpu_offload.buffer_device", False, "text"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "allowed"), BAD, ids=[f"{key}={value!r}" for key, value, _ in BAD])
def test_types_are_checked_also_where_nothing_is_meant(key, value, allowed):
    with pytest.raises(ConfigInvalid) as caught:
        as_config(nested(key, value))
    error = caught.value
    assert (error.subject, error.actual, error.allowed) == (f"config, {key}", repr(value), allowed)


@pytest.mark.parametrize("value", [True, "auto", "max", 4])
def test_slices_of_every_kind(value):
    assert len(read(nested("performance.attention_slicing", value))[1]) == 1


@pytest.mark.parametrize(("key", "near"), [
    ("generator.xformers", "use_xformers"), ("performance.batch_size", "max_batch_size"),
    ("resource.cpu_offload.enable", "enabled"), ("resource.oom_delay", "oom_retry_delay"),
])  # fmt: skip
def test_unknown_keys_are_errors(key, near):
    with pytest.raises(ConfigInvalid) as caught:
        as_config(nested(key, 1))
    assert (caught.value.subject, caught.value.remedy) == (f"config, {key}", f"Did you mean '{near}'?")


@pytest.mark.parametrize("key", ["bundle", "defaults", "threads"])
def test_both_schemas_at_once(tmp_path, key):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: {} if key == "defaults" else "x", "generator": {"use_xformers": True}}))
    with pytest.raises(ConfigInvalid) as caught:  # and no warning before it
        load_config(path)
    assert caught.value.subject == str(path)
    assert caught.value.actual == f"'generator' of the older schema beside '{key}' of today's"


def test_a_batch_too_large_for_today():
    with pytest.raises(ConfigInvalid, match="config, max_batch_size: got 5000"):
        as_config(nested("performance.max_batch_size", 5000))
