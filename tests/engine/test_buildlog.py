"""What is read out of a build's log and an inspector's JSON, in the words that real ones use."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from engine.buildlog import BuildLog, Layers, facts_from_plan
from engine.dialect import FLAVOURS, Dialect, Log
from engine.plan import Facts
from tests.fake_tensorrt import fake


def line(name: str, inputs: str, outputs: str, tactic: str, metadata: str = "") -> str:
    """A layer as RTX 1.7 writes it; types of inputs and outputs, separated by commas."""
    lists = [
        ", ".join(
            f"{{ Name: {kind}_{k}, Dimensions: [2,4], Strides: [4,1], StrideOrder: [1,0], Datatype: {kind}, "
            "Format: (Arbitrary) Format with stride order = [1,2,0] }"
            for k, kind in enumerate(kinds.split(","))
            if kind
        )
        for kinds in (inputs, outputs)
    ]
    return (
        f"Name: {name}, LayerType: kgen, Inputs: [{lists[0]}], Constants: [], Outputs: [{lists[1]}], "
        f"TacticName: {tactic}, StreamId: 0, Metadata: {metadata}"
    )


SIGNAL = line("entry^bb^signal^1_myl0_0", "", "", "")
NORM = line("__myl_SiluGnor_myl0_9", "Int32", "Half,Float", "__myl_SiluGnor_0x1", "[ONNX Layer: /unet/attn1/norm]")
PRODUCT = line("/unet/attn1/to_v/MatMul+/unet/attn1/to_k/MatMul_myl0_30", "Half", "BFloat16", "sm80_xmma_gemm")
FUSED = line("_gemm_mha_v2_myl0_31", "Half,Half", "Half", "_gemm_mha_v2_0x9b4c", "[ONNX Layer: /unet/attn1/Softmax]")
FIRST = [SIGNAL, NORM, PRODUCT, FUSED]
SECOND = [layer.replace("_myl0_", "_myl1_") for layer in FIRST]


def told(*layers: str) -> str:
    """The end of a log."""
    border = " Name: sample, IOMode: Input, DataType: Half, Dimensions: [2,4,32,32], Location: Device"
    return "\n".join(["Layers:", *layers, "", "I/O Tensors:", border])


def read(*messages: str) -> Facts:
    log = BuildLog()
    for message in messages:
        log.read(message)
    return log.facts()


def test_the_log_of_a_build_without_a_gpu():
    facts = read("Parsing node: /unet/conv_in [Conv]", "Total Activation Memory: 18139136 bytes", told(*FIRST))
    types = {"bfloat16": 1, "float16": 2, "float32": 1}
    assert facts == Facts(layers=3, fused_attentions=1, types=types, scratch_bytes=18139136)


def test_every_optimization_profile_has_layers_of_its_own():
    """Only one layer's input says that subgraph myl1 is for profile 1, where the attention is not fused."""
    second = [layer.replace("_gemm_mha_v2", "_gemm").replace("Int32_0", "Int32_0 [profile 1]") for layer in SECOND]
    facts = read("Total Activation Memory: 9 bytes", "Total Activation Memory: 7 bytes", told(*FIRST, *second))
    assert (facts.layers, facts.fused_attentions, facts.scratch_bytes) == (3, 0, 9)


def test_subgraphs_of_one_profile_belong_together():
    facts = read(told(*FIRST, *SECOND))
    assert (facts.layers, facts.fused_attentions) == (6, 2)


def test_a_log_that_says_nothing():
    assert read("Layers:", "Layers:\nName: what, else: ever", "Engine generation completed") == Facts()


@pytest.mark.parametrize(
    ("name", "tactic", "fused"),
    [
        ("_gemm_mha_v2_myl0_31", "_gemm_mha_v2_0x9b4c6fd0815c", True), ("_gemm_mha_v2_myl0_31", "", True),
        ("any", "fmha_v2_flash_attention_fp16_64_64_S_160_sm80_kernel", True), ("any", "flash_attn_fp16", True),
        ("any", "sm80_mhagemm", False), ("/unet/mha/proj/MatMul", "", False), ("/unet/attn1/Softmax", "softmax", False),
    ],
)  # fmt: skip
def test_a_kernels_name_tells_a_whole_attention(name, tactic, fused):
    layers = Layers()
    layers.add(name, tactic, ["Half"], name)
    assert layers.facts().fused_attentions == fused


class Opened:
    """A plan that was opened. text: what its inspector says."""

    device_memory_size = 77

    def __init__(self, text: str) -> None:
        self.text = text

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: self.text)


def opened(monkeypatch, engine) -> Facts | None:
    dialect = Dialect(FLAVOURS["tensorrt"], fake("8.6"))
    monkeypatch.setattr("tests.fake_tensorrt._Runtime.deserialize_cuda_engine", lambda runtime, raw: engine)
    return facts_from_plan(dialect, b"plan", dialect.logger(Log()))


def test_an_inspector_is_asked_where_the_plan_can_be_opened(monkeypatch):
    output = {
        "Name": "y",
        "Location": "Device",
        "Dimensions": [2, 4],
        "Format/Datatype": "Row major linear FP16 format",
    }
    layers = [
        {"Name": "conv\x01", "LayerType": "CaskConvolution", "Outputs": [output], "TacticName": "sm80_xmma_fprop"},
        {"Name": "cast", "Outputs": [{**output, "Format/Datatype": "Channel major FP32"}], "TacticValue": "0x0"},
        {"Name": "mha", "Outputs": [{**output, "Datatype": "Half"}], "TacticName": "fmha_v2_fp16_S_64_sm90"},
        "a bare name",
    ]
    text = json.dumps({"Layers": layers, "Bindings": ["x"]}).replace("\\u0001", "\x01")
    types = {"float16": 2, "float32": 1}
    assert opened(monkeypatch, Opened(text)) == Facts(layers=3, fused_attentions=1, types=types, scratch_bytes=77)


@pytest.mark.parametrize("engine", [None, Opened("no JSON"), Opened("[]"), SimpleNamespace()])
def test_what_cannot_be_inspected_is_no_error(monkeypatch, engine):
    assert opened(monkeypatch, engine) is None
