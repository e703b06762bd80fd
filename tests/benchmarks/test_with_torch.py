"""The PyTorch baseline, once through on the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from benchmarks import with_torch
from benchmarks.work import work_from_bundle


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
    assert all(eager[name]["median"] > 0 for name in ("forward_ms", "loop_ms_per_step", "picture_s"))


def test_the_unet_is_channels_last_wherever_it_paints(tiny_bundle):
    work = work_from_bundle(tiny_bundle, size_px=128, steps=2)
    weight = with_torch.open_pipeline(work, "fp32").unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_step_is_what_the_scheduler_makes_of_it(tiny_bundle, monkeypatch):
    """Three evaluations where two were asked for, of a second each; the GPU is waited for at the first and last."""
    now, waits = [0.0], []
    monkeypatch.setattr(with_torch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(with_torch, "_synchronize", lambda: waits.append(now[0]))

    class Pipe:
        unet = SimpleNamespace(dtype=torch.float32)
        scheduler = SimpleNamespace(timesteps=[999, 500, 1])

        def __call__(self, *_, callback_on_step_end, **__):
            for index in range(3):
                now[0] += 1.0
                callback_on_step_end(self, index, 0, {})

    step, whole = with_torch._picture(Pipe(), work_from_bundle(tiny_bundle, size_px=128, steps=2))
    assert (step, whole) == (1.0, 3.0)
    assert waits == [1.0, 3.0, 3.0]


def test_a_bundle_without_its_source_is_told(bundle_folder, capsys):
    assert with_torch.main([str(bundle_folder)]) == 2
    assert "OptionInvalid" in capsys.readouterr().err
