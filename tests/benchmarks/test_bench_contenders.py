"""Who takes part, by device, name and interpreter; what the options make of a plan."""

from __future__ import annotations

import sys

import pytest

from benchmarks.bench import options
from benchmarks.bench.contenders import Spec, chosen, on_cpu, on_gpu
from engine.errors import OptionInvalid


def names(specs):
    return [spec.name for spec in specs]


def asked(*words, gpu=True):
    return options.specs_of(options.parser().parse_args(list(words)), gpu=gpu)


def test_every_contender_of_a_gpu():
    assert names(on_gpu("fp16", autotune=True)) == [
        "diffusers", "diffusers fp32", "diffusers unfused", "torch.compile", "torch.compile max-autotune", "pytorch",
        "pytorch unfused", "pytorch fp32", "onnxruntime", "onnxruntime fp32", "onnxruntime fused", "tensorrt",
        "tensorrt plain", "tensorrt_rtx", "tensorrt_rtx plain", "tensorrt fp32",
    ]  # fmt: skip
    assert "torch.compile max-autotune" not in names(on_gpu("fp16", autotune=False))


def test_every_contender_of_a_cpu():
    assert names(on_cpu(2, autotune=False)) == [
        "diffusers", "diffusers unfused", "torch.compile", "pytorch", "pytorch unfused", "onnxruntime",
        "onnxruntime fp16", "onnxruntime fused", "tensorrt", "tensorrt_rtx",
    ]  # fmt: skip


def test_a_cpus_contenders_find_no_gpu():
    assert {spec.environment["CUDA_VISIBLE_DEVICES"] for spec in on_cpu(2, autotune=True)} == {""}


def test_captured_and_plain_differ_by_that_alone():
    specs = {spec.name: spec for spec in on_gpu("fp16", autotune=False)}
    assert specs["tensorrt"].settings == {"backend": "tensorrt", "precision": "fp16", "capture": True}
    assert specs["tensorrt plain"].settings == {"backend": "tensorrt", "precision": "fp16", "capture": False}


def test_bf16_is_for_plans_and_diffusers():
    precisions = {spec.name: spec.settings["precision"] for spec in on_gpu("bf16", autotune=False)}
    assert (precisions["tensorrt"], precisions["diffusers"]) == ("bf16", "bf16")
    assert (precisions["pytorch"], precisions["onnxruntime"]) == ("fp16", "fp16")


def test_a_first_word_stands_for_all_and_an_equals_sign_for_one():
    assert names(asked("--contenders", "tensorrt")) == ["tensorrt", "tensorrt plain", "tensorrt fp32"]
    assert names(asked("--contenders", "tensorrt=, diffusers fp32")) == ["diffusers fp32", "tensorrt"]


def test_a_variant_alone_is_a_variant_of_nobody():
    (spec,) = asked("--contenders", "diffusers fp32")
    assert spec.of == ""
    assert next(spec for spec in asked("--contenders", "diffusers") if spec.name == "diffusers fp32").of == "diffusers"


def test_an_interpreter_is_a_contenders_and_its_variants(tmp_path):
    (tmp_path / "real").write_text("")
    link = tmp_path / "python"
    link.symlink_to(tmp_path / "real")
    pythons = {spec.name: spec.python for spec in asked("--python", f"tensorrt={link}")}
    assert pythons["tensorrt"] == pythons["tensorrt plain"] == str(link), "a link, for its environment lies beside it"
    assert pythons["diffusers"] == pythons["tensorrt_rtx"] == sys.executable
    assert {spec.name: spec.python for spec in asked("--python", "tensorrt=python3.10")}["tensorrt"] == "python3.10"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--contenders", "onnx"], "bench, --contenders: got onnx"),
        (["--python", "nobody=python"], "bench, --python: got nobody"),
        (["--python", "tensorrt"], "NAME=PATH"),
    ],
)
def test_what_nobody_has_is_refused(words, told):
    with pytest.raises(OptionInvalid, match=told):
        asked(*words)


def plan(*words, gpu):
    return options.plan_of(options.parser().parse_args(list(words)), gpu=gpu)


def test_a_plans_counts():
    assert (plan(gpu=True).turns, plan(gpu=False).turns) == (25, 7)
    assert (plan(gpu=True).batch_steps, plan(gpu=False).batch_steps) == (20, 4)
    assert plan("--steps", "8", "8", "2", "--turns", "3", gpu=True).steps == (8, 2)
    assert plan("--quick", gpu=True).turns == 2
    assert plan("--batches", "4", "1", "4", gpu=True).batches == (1, 4)
    assert plan("--batches", gpu=False).batches == ()
    assert plan("--wait", "PASSIVE", gpu=False).policies == ("PASSIVE",)
    assert not plan("--no-export", gpu=True).export


@pytest.mark.parametrize(
    "words", [["--turns", "0"], ["--steps", "101"], ["--pictures", "9"], ["--starts", "0"], ["--batches", "17"]]
)
def test_counts_out_of_range(words):
    with pytest.raises(OptionInvalid, match=words[0]):
        plan(*words, gpu=False)


def test_torchs_contenders_are_known_as_such():
    of = {spec.name: spec.uses_torch for spec in on_cpu(2, autotune=False)}
    assert [name for name, torch in of.items() if torch] == [
        "diffusers", "diffusers unfused", "torch.compile", "pytorch", "pytorch unfused"
    ]  # fmt: skip
    assert chosen([Spec(name="a", factory="m:C", settings={})], [], {})[0].python == sys.executable
