"""The PyTorch baseline, once through on the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import gpu, with_torch
from benchmarks.work import work_from_bundle
from tests.family_pipelines import family_bundle


def test_eager_on_a_cpu(tiny_bundle, tmp_path, capsys):
    words = ["--mode", "eager", "--precision", "fp32", "--size", "128", "--steps", "2"]
    few = ["--repeats", "2", "--pictures", "1", "--out", str(tmp_path / "torch.json")]
    assert with_torch.main([str(tiny_bundle), *words, *few]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "torch.json").read_text(encoding="utf-8"))
    assert (found["benchmark"], found["steps"], found["device"]) == ("torch", 2, with_torch.device_name())
    assert found["bundle"] == tiny_bundle.name
    assert any("max-autotune" in words for words in found["not_tried"])
    eager = found["modes"]["eager"]
    assert eager["first_s"] > 0
    times = ("forward_ms", "conditioning_ms", "decode_ms", "loop_ms_per_step", "picture_s")
    assert all(eager[name]["median"] > 0 for name in times)


def test_sdxl_on_a_cpu(capsys):
    """Two encoders, pooled prompt and time ids; the VAE in the precision asked for, though its config upcasts it."""
    words = ["--mode", "eager", "--precision", "fp32", "--size", "64", "--steps", "2", "--repeats", "1"]
    assert with_torch.main([str(family_bundle("sdxl")), *words, "--pictures", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["modes"]["eager"]["decode_ms"]["median"] > 0
    pipe = with_torch.open_pipeline(work_from_bundle(family_bundle("sdxl"), size_px=64, steps=2), "fp16")
    assert (pipe.vae.dtype, pipe.vae.config.force_upcast) == (torch.float16, False)


def test_the_requests_that_both_sides_paint(tiny_bundle, tmp_path, capsys):
    """Diffusers and the ONNX Runtime backend, from the same noise, in fp32: alike to more than 40 dB."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    words = ["--precision", "fp32", "--size", "128", "--mode", "eager", "--requests", "2"]
    assert with_torch.main([str(tiny_bundle), *words, "--paint", str(theirs)]) == 0
    words = ["--backend", "onnxruntime", "--precision", "fp32", "--size", "128", "--requests", "2", "--repeats", "0"]
    assert gpu.main(["run", str(tiny_bundle), *words, "--out", str(ours)]) == 0
    capsys.readouterr()
    assert gpu.main(["compare", str(ours), str(theirs)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["psnr_db"]) == 2
    assert min(found["psnr_db"]) > 40


def test_the_unet_is_channels_last_wherever_it_paints(tiny_bundle):
    work = work_from_bundle(tiny_bundle, size_px=128, steps=2)
    weight = with_torch.open_pipeline(work, "fp32").unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_step_is_what_the_scheduler_makes_of_it(tiny_bundle, monkeypatch):
    """Three evaluations where two were asked for, of a second each; the GPU is waited for at the first and last."""
    now, waits = [0.0], []
    monkeypatch.setattr(with_torch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(with_torch, "synchronize", lambda: waits.append(now[0]))

    class Pipe:
        unet = SimpleNamespace(dtype=torch.float32)
        scheduler = SimpleNamespace(timesteps=[999, 500, 1])

        def __call__(self, *_, callback_on_step_end, **__):
            for index in range(3):
                now[0] += 1.0
                callback_on_step_end(self, index, 0, {})
            return SimpleNamespace(images=[np.zeros((2, 2, 3))])

    step, whole = with_torch._picture(Pipe(), work_from_bundle(tiny_bundle, size_px=128, steps=2))
    assert (step, whole) == (1.0, 3.0)
    assert waits == [1.0, 3.0, 3.0]


def test_a_bundle_without_its_source_is_told(bundle_folder, capsys):
    assert with_torch.main([str(bundle_folder)]) == 2
    assert "OptionInvalid" in capsys.readouterr().err
