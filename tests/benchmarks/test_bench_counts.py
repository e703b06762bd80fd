"""Operations and bytes of graphs, beside what torch counts of the same modules; how close a part comes to the limit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.bench.counts import Count, count_graph, count_model, counts
from benchmarks.bench.result import add_limits, add_turns, comparisons, counted_for
from benchmarks.loop import dims_of
from engine.bundle import load_bundle


def model(op, shapes, out, **attributes):
    """One node; the second input on are weights."""
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), f"w{k}") for k, shape in enumerate(shapes[1:])]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shapes[0])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, out)
    node = helper.make_node(op, ["x", *[w.name for w in weights]], ["y"], **attributes)
    graph = helper.make_graph([node], "one", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("op", "shapes", "out", "attributes", "flops"),
    [
        ("MatMul", [(2, 5, 7), (7, 3)], (2, 5, 3), {}, 2 * 2 * 5 * 7 * 3),
        ("Gemm", [(5, 7), (3, 7)], (5, 3), {"transB": 1}, 2 * 5 * 7 * 3),
        ("Gemm", [(7, 5), (7, 3)], (5, 3), {"transA": 1}, 2 * 5 * 7 * 3),
        ("Conv", [(2, 8, 10, 10), (6, 8, 3, 3)], (2, 6, 8, 8), {}, 2 * 2 * 6 * 64 * 8 * 9),
        ("Conv", [(1, 8, 10, 10), (8, 1, 3, 3)], (1, 8, 8, 8), {"group": 8}, 2 * 8 * 64 * 9),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 6, 2, 2)], (1, 6, 10, 10), {"strides": [2, 2]}, 2 * 4 * 25 * 6 * 4),
        ("Relu", [(2, 3)], (2, 3), {}, 0),
    ],
)
def test_operations_of_a_node(op, shapes, out, attributes, flops):
    found = count_model(model(op, shapes, out, **attributes), {"x": shapes[0]})
    assert found.flops == flops
    assert found.elements == sum(int(np.prod(shape)) for shape in [*shapes, out])


def test_a_denoiser_counts_what_torch_counts(tiny_bundle, tiny_source):
    """The fp16 graphs have diffusers' own form; torch counts the same module at the same shapes."""
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.torch_pipe import unfused_attention

    bundle = load_bundle(tiny_bundle)
    dims = dims_of(bundle, 64)
    graphs = {graph.name: graph for graph in bundle.graphs("fp16")}
    found = sum(count_graph(tiny_bundle, graphs[name], dims).flops for name in ("denoiser", "prologue"))
    unet = UNet2DConditionModel.from_pretrained(tiny_source / "unet", local_files_only=True)
    text = torch.zeros(2, 77, unet.config.cross_attention_dim)
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), unfused_attention():  # else not counted
        unet(torch.zeros(2, 4, 8, 8), torch.tensor(5), text)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_every_graph_that_a_picture_needs_is_counted(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    found = counts(tiny_bundle, bundle, dims_of(bundle, 64))
    assert set(found["fp32"]) == {"conditioning", "start", "prologue", "denoiser", "solver", "decoder"}
    assert found["fp32"]["denoiser"].flops <= found["fp16"]["denoiser"].flops, "phases leave products out"


def test_the_floor_is_the_larger_of_both_times():
    count = Count(flops=2e9, elements=1_000_000)
    assert count.floor("fp32", tflops=1.0, gb_s=100.0) == (2.0, "compute")
    assert count.floor("fp32", tflops=100.0, gb_s=1.0) == (4.0, "memory")
    assert count.floor("fp16", tflops=100.0, gb_s=1.0) == (2.0, "memory")


FOUND = {
    "fp32": {"denoiser": Count(4e9, 100), "solver": Count(0.0, 10), "decoder": Count(9e9, 50)},
    "fp16": {
        "prologue": Count(1e9, 1),
        "denoiser": Count(5e9, 100),
        "solver": Count(0.0, 10),
        "decoder": Count(9e9, 5),
    },
}


def test_torch_does_the_prologues_work_in_every_step():
    assert counted_for("diffusers unfused", "fp32", FOUND)["denoiser"] == Count(6e9, 101)
    assert "prologue" not in counted_for("torch.compile", "fp16", FOUND)
    assert counted_for("onnxruntime", "fp32", FOUND)["denoiser"] == Count(4e9, 100)
    assert counted_for("tensorrt plain", "bf16", FOUND)["step"] == Count(5e9, 110)
    assert counted_for("onnxruntime", "fp32", {"fp16": FOUND["fp16"]})["denoiser"] == Count(5e9, 100)


def contender(**changes):
    return {"runs": True, "of": "", "by": "", "precision": "fp32", "weights_bytes": 5, "host_peak_bytes": 7,
            "gpu_peak_bytes": None, "parts": {}, **changes}  # fmt: skip


def test_fractions_of_the_limit():
    ceilings = {"matmul": {"fp32": {"tflops": 0.2}}, "copy": {"gb_s": 30.0}}
    one = contender(parts={"ms": {"denoiser": {"median": 40.0}, "decoder": {"median": 90.0}, "other": {"median": 1.0}}})
    one["speed"] = {"4": {"seconds": {"median": 0.5}}}
    add_limits({"onnxruntime": one}, FOUND, ceilings, 4)
    limits = one["limits"]
    assert set(limits) == {"denoiser", "decoder", "picture"}
    assert limits["denoiser"]["fraction"] == pytest.approx(0.5)
    assert limits["decoder"]["tflops"] == pytest.approx(0.1)
    assert limits["picture"]["floor_ms"] == pytest.approx(4 * 20 + 45)
    assert limits["picture"]["fraction"] == pytest.approx(125 / 500)


def test_without_ceilings_there_are_no_limits():
    one = contender(parts={"ms": {"denoiser": {"median": 40.0}}})
    add_limits({"a": one}, FOUND, {"matmul": {}, "copy": {}}, 4)
    assert "limits" not in one


def test_variants_beside_what_they_are_variants_of():
    contenders = {
        "a": contender(),
        "a fp16": contender(of="a", by="precision"),
        "a fused": contender(of="a", runs=False),
    }
    turn = {"seconds": 1.0, "stages": {}, "device_ms": {}}
    turns = {"a": {4: [turn]}, "a fp16": {4: [{**turn, "seconds": 0.5}]}}
    add_turns(contenders, turns, (4,), "a")
    assert contenders["a fp16"]["times_as_fast_as"]["a"]["median"] == 2.0
    assert contenders["a"]["times_as_fast_as"] == {}
    (pair,) = comparisons(contenders, 4)
    assert (pair["names"], pair["seconds"], pair["flip"]) == (["a", "a fp16"], [1.0, 0.5], [None, None])
