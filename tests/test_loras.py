"""LoRAs fused and as inputs, from files in each dialect to final latents, against diffusers' own pipeline and loader.

What diffusers cannot read itself (an alpha beside its own names, peft's names of a bare UNet) is the same LoRA as one
that it can, kohya's file with the same values.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, LoraInvalid
from export.bundle import export_bundle
from export.families import FusedLoraFile
from export.lora import fuse, fuser, read_loras, unet_names
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.conftest import CACHE
from tests.independent import Encoder
from tests.lora_files import DIALECTS, kohya, load, random_pairs, text_layers, unet_layers, write

COMMON = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "scheduler": "dpmpp_2m"}
NOISE = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
TOLERANCE = 1e-4
"""Relative: fp32 through three steps of a UNet, in another order of sums."""


@pytest.fixture(scope="module")
def modules(tiny_source):
    return {
        "unet": UNet2DConditionModel.from_pretrained(tiny_source / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(tiny_source / "text_encoder"),
    }


@pytest.fixture(scope="module")
def pairs(modules):
    """Two LoRAs of the UNet, of ranks 4 and 3."""
    unet = modules["unet"]
    return [random_pairs("unet", unet, unet_layers(unet), rank=rank, seed=rank) for rank in (4, 3)]


@pytest.fixture(scope="module")
def texts(modules):
    text = modules["text_encoder"]
    return random_pairs("text_encoder", text, text_layers(text), rank=2, seed=9)


@pytest.fixture(scope="module")
def opened(lora_bundle):
    pipelines = {name: Pipeline.load(lora_bundle, name, precision="fp32", device="cpu", threads=1)
                 for name in ("onnxruntime", "pytorch")}  # fmt: skip
    yield pipelines
    for pipeline in pipelines.values():
        pipeline.close()


def expected_latents(source, loras, prompt="a cat"):
    """diffusers' pipeline with its own loader. loras: (file, weight)."""
    encoder = Encoder(source)
    encoder.pipeline.text_encoder.__dict__.pop("text_model", None)  # its loader looks for the level that there is not
    load(encoder.pipeline, loras)
    cond, uncond = (encoder.encode_prompt([text], None) for text in (prompt, ""))
    return encoder.latents(cond, uncond, NOISE, 3, 3.0)


def final_latents(pipeline, **asked):
    found = []
    pipeline.generate(
        Request(prompt="a cat", latents=NOISE, **COMMON, **asked), lambda step: found.append(step.latents())
    )
    return found[-1]


def difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


CASES = [
    *((dialect, alpha, "fp32") for dialect in DIALECTS for alpha in (True, False)),
    ("kohya", True, "fp16"), ("peft", False, "fp16"), ("kohya", True, "bf16"), ("diffusers", False, "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "alpha", "dtype"), CASES)
def test_inputs_are_diffusers(tiny_source, opened, pairs, tmp_path, dialect, alpha, dtype):
    known = write(tmp_path / "known.safetensors", pairs[0], kohya, alpha=alpha, dtype=dtype)
    expected = expected_latents(tiny_source, [(known, 0.8)])
    path = write(tmp_path / "x.safetensors", pairs[0], DIALECTS[dialect], alpha=alpha, dtype=dtype)
    for pipeline in opened.values():
        assert difference(final_latents(pipeline, loras=[(path, 0.8)]), expected) <= TOLERANCE
        assert difference(final_latents(pipeline), expected) > 1e-2


def test_two_at_once(tiny_source, opened, pairs, tmp_path):
    """Ranks of 4 and 3, one with less than nothing of it."""
    paths = [write(tmp_path / f"{k}.safetensors", own) for k, own in enumerate(pairs)]
    loras = [(paths[0], 0.6), (paths[1], -1.2)]
    expected = expected_latents(tiny_source, loras)
    for pipeline in opened.values():
        assert difference(final_latents(pipeline, loras=loras), expected) <= TOLERANCE


def test_without_any_it_is_the_bundle_that_takes_none(opened, tiny_bundle):
    """Zeros are added: the sums are the same, though ONNX Runtime may fuse other nodes around them (seen: equal)."""
    with Pipeline.load(tiny_bundle, "onnxruntime", precision="fp32", threads=1) as plain:
        assert difference(final_latents(opened["onnxruntime"]), final_latents(plain)) <= 1e-6


def test_layers_of_text_encoders_are_left_out_and_told_once(opened, pairs, texts, tmp_path, caplog):
    both = write(tmp_path / "both.safetensors", [*texts, *pairs[0]])
    alone = write(tmp_path / "alone.safetensors", pairs[0])
    pipeline = opened["onnxruntime"]
    found = [final_latents(pipeline, loras=[both]) for _ in range(2)]
    assert np.array_equal(found[0], final_latents(pipeline, loras=[alone]))
    told = [record.getMessage() for record in caplog.records if "text encoders" in record.getMessage()]
    assert len(told) == 1
    assert f"its {len(texts)} layers of text encoders (lora_te_" in told[0]


def test_a_batch_of_different_loras_is_its_serial_runs(opened, pairs, tmp_path):
    """A batch of another size is summed in another order: one level of a pixel."""
    paths = [str(write(tmp_path / f"{k}.safetensors", own)) for k, own in enumerate(pairs)]
    loras = [[(paths[0], 1.0)], [], [(paths[1], 1.0)], [(paths[0], 0.5), (paths[1], 0.5)]]
    common = {**COMMON, "guidance_scale": 2.0}
    requests = [Request(prompt="a cat", seed=3, loras=one, **common) for one in loras]
    requests.append(Request(prompt="a cat", seed=3, loras=loras[0], **{**common, "guidance_scale": 0}))
    pipeline = opened["onnxruntime"]
    together = [result.arrays.astype(int) for result in pipeline.generate_many(requests)]
    for request, one in zip(requests, together, strict=True):
        assert np.abs(pipeline.generate(request).arrays.astype(int) - one).max() <= 1
    assert all(np.abs(one - together[1]).max() > 1 for one in (together[0], together[2], together[3]))


def test_to_load_change_and_remove_one_takes_less_than_a_second(opened, pairs, tmp_path):
    """Of processor time, with the picture itself; the conditioning of the prompt stays."""
    path = write(tmp_path / "x.safetensors", pairs[0])
    pipeline = opened["onnxruntime"]
    base = pipeline.generate(Request(prompt="a cat", **COMMON)).arrays
    for loras in ([(path, 1.0)], [(path, 0.5)], []):
        begun = time.process_time()
        result = pipeline.generate(Request(prompt="a cat", loras=loras, **COMMON))
        assert time.process_time() - begun < 1
        assert result.metadata["conditioning_cached"]
        assert np.array_equal(result.arrays, base) == (not loras)


def test_metadata_names_file_weight_and_hash(opened, pairs, tmp_path):
    path = write(tmp_path / "x.safetensors", pairs[0])
    told = opened["onnxruntime"].generate(Request(prompt="a cat", loras=[(path, 0.5)], **COMMON)).metadata["loras"]
    assert [(one["path"], one["weight"]) for one in told] == [(str(path), 0.5)]
    assert (
        told[0]["sha256"]
        == read_loras([FusedLoraFile(path, 1.0)], ["unet"], unet_names({"layers_per_block": 1}))[0].sha256
    )


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "peft_model"])
@pytest.mark.parametrize("alpha", [True, False])
def test_fused_weights_are_diffusers(tiny_source, pairs, texts, tmp_path, dialect, alpha):
    """To the last bits: one product and one sum for each weight."""
    known = write(tmp_path / "known.safetensors", [*pairs[0], *texts], kohya, alpha=alpha)
    path = write(tmp_path / "x.safetensors", [*pairs[0], *texts], DIALECTS[dialect], alpha=alpha)
    theirs, ours = (StableDiffusionPipeline.from_pretrained(tiny_source) for _ in range(2))
    theirs.load_lora_weights(known.parent, weight_name=known.name, adapter_name="one")
    theirs.set_adapters(["one"], [0.7])
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    names = unet_names(dict(ours.unet.config))
    loras = read_loras([FusedLoraFile(path, 0.7)], ["unet", "text_encoder"], names)
    for name in ("unet", "text_encoder"):
        fuse(getattr(ours, name), name, loras, names)
        expected = dict(getattr(theirs, name).named_parameters())
        for key, value in getattr(ours, name).named_parameters():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)


def test_convolutions_can_be_fused(modules, tmp_path, tiny_source):
    """What kohya's LoCon trains: 3×3 kernels, and those of a resnet's shortcut."""
    unet = UNet2DConditionModel.from_pretrained(tiny_source / "unet")
    paths = ["down_blocks.1.resnets.0.conv1", "up_blocks.0.resnets.0.conv_shortcut"]
    made = random_pairs("unet", unet, paths[1:])
    weight = unet.get_submodule(paths[0]).weight
    down, up = torch.randn(2, *weight.shape[1:]), torch.randn(weight.shape[0], 2, 1, 1)
    made.append(type(made[0])("unet", paths[0], down, up, 1.0))
    before = {path: unet.get_submodule(path).weight.detach().clone() for path in paths}
    path = write(tmp_path / "x.safetensors", made)
    names = unet_names(dict(unet.config))
    fuser(read_loras([FusedLoraFile(path, 0.5)], ["unet"], names), names)(unet, "unet")
    for pair in made:
        rank = pair.down.shape[0]
        product = (pair.up.flatten(1) @ pair.down.flatten(1)) * (0.5 * pair.alpha / rank)
        expected = before[pair.path] + product.reshape(before[pair.path].shape)
        torch.testing.assert_close(unet.get_submodule(pair.path).weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def fused(tiny_source, pairs, texts, tmp_path_factory):
    """A bundle with two LoRAs in it, one of them of the text encoder too."""
    folder = tmp_path_factory.mktemp("fused")
    loras = [
        (write(folder / "a.safetensors", [*pairs[0], *texts]), 0.7),
        (write(folder / "b.safetensors", pairs[1]), 0.4),
    ]
    out = folder / "bundle"
    export_bundle(tiny_source, out, precisions=["fp32"], schedulers=["dpmpp_2m"], cache=CACHE / "tables", loras=loras)
    return out, loras


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_a_fused_bundle_is_diffusers(tiny_source, fused, backend):
    folder, loras = fused
    expected = expected_latents(tiny_source, loras)
    with Pipeline.load(folder, backend, precision="fp32", device="cpu", threads=1) as pipeline:
        assert difference(final_latents(pipeline), expected) <= TOLERANCE


def test_what_was_fused_is_part_of_the_bundle(fused, tiny_bundle):
    folder, loras = fused
    told = load_bundle(folder).loras
    assert [one.weight for one in told] == [0.7, 0.4]
    for one, (path, _) in zip(told, loras, strict=True):
        assert (folder / one.path).resolve() == path.resolve()
    assert load_bundle(tiny_bundle).loras == ()


def test_pytorch_refuses_another_file(fused):
    folder, loras = fused
    path = loras[1][0]
    before = path.read_bytes()
    for change in (lambda: path.write_bytes(before[:-1] + b"\1"), path.unlink):
        change()
        try:
            with pytest.raises(BackendUnavailable, match="LoRA"):
                Pipeline.load(folder, "pytorch", precision="fp32", device="cpu")
        finally:
            path.write_bytes(before)


@pytest.mark.parametrize("what", ["component", "layer", "name", "shape", "twice", "changed"])
def test_what_is_not_for_this_model_is_refused_by_its_key(tiny_source, modules, pairs, texts, tmp_path, what):
    names = unet_names(dict(modules["unet"].config))
    first = pairs[0][0]
    replaced = {
        "layer": type(first)("unet", "down_blocks.9.attentions.0.proj_in", first.down, first.up, 1.0),
        "shape": type(first)("unet", first.path, first.down[:, :-1], first.up, 1.0),
    }  # fmt: skip
    made = [replaced.get(what, first)]
    if what == "component":
        made = [type(one)("text_encoder_2", one.path, one.down, one.up, 1.0) for one in texts]
    path = write(tmp_path / "x.safetensors", made)
    if what == "name":
        from safetensors.torch import save_file

        save_file({"lora_unet_so.lora_down.weight": first.down, "lora_unet_so.lora_up.weight": first.up}, path)
    if what == "twice":
        from safetensors.torch import save_file

        down, up, _ = kohya(first)
        other = f"unet.{first.path}.lora_A.weight", f"unet.{first.path}.lora_B.weight"
        save_file(
            {key: value.clone() for key, value in zip((down, up, *other), 2 * (first.down, first.up), strict=True)},
            path,
        )
    copy = UNet2DConditionModel.from_pretrained(tiny_source / "unet")
    sha256 = "0" * 64 if what == "changed" else ""
    with pytest.raises(LoraInvalid, match=r"x\.safetensors"):
        fuse(copy, "unet", read_loras([FusedLoraFile(path, 1.0, sha256)], ["unet", "text_encoder"], names), names)
