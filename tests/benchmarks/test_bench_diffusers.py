"""The contender diffusers, on a tiny model; stages and parts of pipelines that have a transformer, not a UNet."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_pipe  # noqa: E402
from benchmarks.bench import by_diffusers  # noqa: E402
from benchmarks.bench.by_backend import BackendContender  # noqa: E402
from benchmarks.bench.by_diffusers import DiffusersContender  # noqa: E402
from benchmarks.bench.ceilings import Ceilings, merge  # noqa: E402
from benchmarks.pairs import psnr  # noqa: E402
from benchmarks.work import work_from_bundle  # noqa: E402

ASKED = {"prompt": "a cat", "seed": 3, "steps": 2, "count": 2}


@pytest.fixture(scope="module")
def pictures(tiny_bundle, tmp_path_factory):
    """What each of four contenders paints of the same noise, and what diffusers told of it."""
    folder, painted, told = tmp_path_factory.mktemp("pictures"), {}, {}
    eager = {"precision": "fp32", "compile": None, "threads": 1}
    for name, contender, settings in (
        ("fused", DiffusersContender(), {**eager, "attention": "fused"}),
        ("unfused", DiffusersContender(), {**eager, "attention": "unfused"}),
        ("pytorch", BackendContender(), {"backend": "pytorch", "precision": "fp32", "attention": "unfused"}),
        ("onnxruntime", BackendContender(), {"backend": "onnxruntime", "precision": "fp32", "threads": 1}),
    ):
        told[name] = contender.open(bundle=str(tiny_bundle), size=128, settings=settings)
        told[name] |= contender.paint(**ASKED, out=str(folder / f"{name}.npy"))
        painted[name] = np.load(folder / f"{name}.npy")
        told[name] |= contender.parts(repeats=1)
    return painted, told


def test_all_paint_the_same_pictures_of_the_same_noise(pictures):
    painted, _ = pictures
    assert {one.shape for one in painted.values()} == {(2, 128, 128, 3)}
    for name in ("unfused", "pytorch", "onnxruntime"):
        assert min(psnr(a, b) for a, b in zip(painted[name], painted["fused"], strict=True)) > 50, name


def test_stages_are_the_whole_of_a_picture(pictures):
    _, told = pictures
    for name in ("fused", "unfused"):
        assert sum(told[name]["stages"].values()) == pytest.approx(told[name]["seconds"], rel=1e-6)
        assert set(told[name]["parts"]) == {"conditioning", "denoiser", "decoder"}
        assert told[name]["weights_bytes"] > 0
    assert "prologue" not in told["pytorch"]["parts"], "torch's denoiser does its work"


def test_unfused_attention_is_two_products_and_a_softmax():
    """torch's own trace of its operations: no fused kernel is called within the block."""
    q = torch.randn(1, 2, 16, 8)
    seen = {}
    for name, block in (("fused", contextlib.nullcontext()), ("unfused", torch_pipe.unfused_attention())):
        with torch.profiler.profile() as profile, block:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        seen[name] = {one.key for one in profile.key_averages()}
    assert any("flash" in key for key in seen["fused"])
    assert not any("flash" in key for key in seen["unfused"])
    assert any("softmax" in key for key in seen["unfused"])


class Vae:
    def __init__(self, pipe):
        self.pipe = pipe

    def decode(self, latents, return_dict=True):
        self.pipe.calls.append("decode")
        return latents


class Transformer:
    """A pipeline without a UNet: it calls its transformer with lists, as Z-Image's does, and its VAE's decoder."""

    def __init__(self):
        self.calls = []
        self.transformer = self._denoise
        self.vae = Vae(self)
        self.unet = None

    def _denoise(self, latents, timestep, *, captions):
        self.calls.append("denoise")
        return latents

    def encode_prompt(self, prompt, device=None):
        self.calls.append("encode")

    def __call__(self, prompt, *, latents, num_inference_steps, num_images_per_prompt, callback_on_step_end, **_):
        self.encode_prompt(prompt)
        for index in range(num_inference_steps):
            (latents,) = self.transformer([latents + index], torch.tensor([0.5]), captions=[torch.ones(2)])
            callback_on_step_end(self, index, 0, {})
        self.vae.decode(latents, return_dict=False)
        return SimpleNamespace(images=[np.zeros((4, 4, 3))] * num_images_per_prompt)


class ZImageLike(Transformer):
    pass


ZImageLike.__name__ = "ZImagePipeline"


def test_a_transformers_calls_are_recorded_as_they_were(tiny_bundle):
    pipe, work = ZImageLike(), work_from_bundle(tiny_bundle, size_px=64, steps=9)
    kept = pipe.transformer
    assert torch_pipe.denoiser_name(pipe) == "transformer"
    found = torch_pipe.recorded(pipe, work)
    assert pipe.calls.count("denoise") == 2, "a short picture"
    assert pipe.transformer == kept
    assert "decode" not in vars(pipe.vae)
    assert "encode_prompt" not in vars(pipe)
    (latents, timestep), named = found["denoiser"]
    assert torch.equal(latents[0], torch.from_numpy(work.latents) + 1)
    assert (float(timestep), len(named["captions"])) == (0.5, 1)
    assert found["decode"][1] == {"return_dict": False}
    assert found["conditioning"] == ((work.prompt,), {})
    calls = torch_pipe.stages(pipe, work)
    pipe.calls.clear()
    for name in ("conditioning", "denoiser", "decode"):
        calls[name]()
    assert pipe.calls == ["encode", "denoise", "decode"]


def test_stage_times_of_any_pipeline(tiny_bundle, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(by_diffusers, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    pipe, work = ZImageLike(), work_from_bundle(tiny_bundle, size_px=64, steps=3)

    took = {"denoise": 2.0, "encode": 1.0, "decode": 5.0}
    monkeypatch.setattr(pipe, "calls", SimpleNamespace(append=lambda name: now.__setitem__(0, now[0] + took[name])))
    times = by_diffusers.StageTimes(pipe)
    with times.taken(pipe):
        torch_pipe.paint(pipe, work)
    assert (times.loop, times.decode) == (1.0, 7.0)


def test_ceilings_of_this_cpu(monkeypatch):
    from benchmarks.bench import ceilings

    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64, 128)})
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    found = Ceilings().measure(device="cpu", threads=1)
    assert found["matmul"]["fp32"]["tflops"] > 0
    assert found["matmul"]["fp32"]["by"] in ("torch", "onnxruntime")
    assert found["copy"]["by"] == "torch"
    if not torch.cuda.is_available():
        assert Ceilings().measure(device="gpu") == {"matmul": {}, "copy": {}}


def test_the_better_of_two_moments():
    into = {"matmul": {"fp32": {"tflops": 2.0, "by": "a"}}, "copy": {}}
    other = {"matmul": {"fp32": {"tflops": 1.0, "by": "b"}, "fp16": {"tflops": 3.0, "by": "b"}}, "copy": {"gb_s": 5.0}}
    merge(into, other)
    merge(into, {"matmul": {}, "copy": {"gb_s": 4.0}})
    assert into["matmul"] == {"fp32": {"tflops": 2.0, "by": "a"}, "fp16": {"tflops": 3.0, "by": "b"}}
    assert into["copy"] == {"gb_s": 5.0}
