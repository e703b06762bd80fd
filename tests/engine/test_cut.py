"""Parts of a graph, run one after another, give what the whole gives; where the cuts lie, and what crosses them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.binding import Binding
from engine.bundle import load_bundle
from engine.cut import Layout, Outline, outline, part_of, part_shapes
from engine.rewrite import read_model
from engine.shapes import FLOATS, tensor_types
from tests.random_graphs import INPUTS, SIZES, feeds, random_model, run

COUNTS = (2, 3, 7)


def parts_of(model, count):
    return [part_of(model, (index, count)) for index in range(1, count + 1)]


def check_chain(model, parts):
    """Inputs are the graph's or an earlier part's; every output of the graph is made once, in order."""
    known, made = [value.name for value in model.graph.input], []
    for part in parts:
        onnx.checker.check_model(part)
        assert {value.name for value in part.graph.input} <= set(known)
        assert all(value.type.tensor_type.elem_type in FLOATS for value in part.graph.input)
        names = [value.name for value in part.graph.output]
        assert names
        assert not set(names) & set(known)
        known += names
        made += [name for name in names if name in {value.name for value in model.graph.output}]
    assert sorted(made) == sorted(value.name for value in model.graph.output)


@pytest.mark.parametrize("seed", range(12))
def test_parts_of_any_graph_give_what_the_whole_gives(seed):
    model = random_model(seed)
    blocks = outline(model).blocks
    for count in {count for count in (2, 3, 5, blocks) if count <= blocks}:
        parts = parts_of(model, count)
        check_chain(model, parts)
        for dims in SIZES:
            wires = feeds(dims)
            whole = run(model, wires)
            for part in parts:
                wires |= run(part, wires)
            for name, expected in whole.items():
                assert np.array_equal(wires[name], expected)


@pytest.mark.parametrize("seed", range(10))
def test_shapes_of_parts_are_those_of_the_whole(seed):
    model = random_model(seed)
    count = min(3, outline(model).blocks)
    shapes = {b.name: tuple(b.resolve(dims) for dims in SIZES) for b in INPUTS}
    for index in range(1, count + 1):
        found = part_shapes(model, (index, count), shapes)
        part = part_of(model, (index, count))
        assert list(found) == [value.name for value in part.graph.input]
        for k in range(3):
            types = tensor_types(model, {name: sizes[k] for name, sizes in shapes.items()})
            assert all(sizes[k] == types[name][1] for name, sizes in found.items())


def test_the_whole_is_a_part():
    model = random_model(0)
    assert part_of(model, (1, 1)) is model
    assert part_shapes(model, (1, 1), {"sample": ((1,), (2,), (3,))}) == {"sample": ((1,), (2,), (3,))}


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 1000)])
def test_parts_that_are_none(part):
    with pytest.raises(ValueError, match=f"part {part[0]} of {part[1]} of a graph with"):
        part_of(random_model(0), part)


def test_a_graph_that_cannot_be_followed_is_one_block():
    nodes = [helper.make_node("NonZero", ["x"], ["y"]), helper.make_node("Shape", ["y"], ["z"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="z")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert outline(model) == Outline(nodes=2, blocks=1, weights_bytes=0)
    with pytest.raises(ValueError, match="depends on data"):
        part_of(model, (1, 2))


def blocks(paths, skips=()):
    """A chain of Mul by a weight of 100, one node per path; skips: {at: from}, an Add of an earlier result."""
    nodes, weights, last = [], [], "x"
    for k, path in enumerate(paths):
        weights.append(numpy_helper.from_array(np.full(100, 1 + k / 10, np.float32), f"w{k}"))
        nodes.append(helper.make_node("Mul", [last, f"w{k}"], [f"m{k}"], name=f"/{path}/Mul"))
        last = f"m{k}"
        if k in dict(skips):
            nodes.append(helper.make_node("Add", [last, f"m{dict(skips)[k]}"], [f"a{k}"], name=f"/{path}/Add"))
            last = f"a{k}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 100]) for name in ("x", last))
    return helper.make_model(
        helper.make_graph(nodes, "chain", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def test_cuts_lie_where_the_module_changes():
    """Three components of the name count: what is deeper is one block."""
    paths = ["net/down.0/conv/a", "net/down.0/conv/b", "net/down.0/norm", "net/mid", "net/mid", "net/up.0/conv"]
    layout = Layout(blocks(paths))
    assert layout.boundaries == [2, 3, 5]
    assert outline(blocks(paths)) == Outline(nodes=6, blocks=4, weights_bytes=6 * 400)


def test_cuts_balance_the_parts_and_avoid_what_crosses():
    even = [f"net/b.{k}/x" for k in range(8)]
    assert [len(part.graph.node) for part in parts_of(blocks(even), 4)] == [2, 2, 2, 2]
    spanned = blocks(even, skips=[(4, 1)])  # a skip from 1 to 4 lies over the middle, where the even cut would be
    assert len(parts_of(spanned, 2)[0].graph.output) <= 2
    costly = blocks([f"net/b.{k}/x" for k in range(60)], skips=[(30, k) for k in range(1)])
    first, second = parts_of(costly, 2)
    assert len(first.graph.output) == 1
    assert abs(len(first.graph.node) - len(second.graph.node)) < 6


def test_no_part_has_much_more_than_its_share_of_the_weights():
    """As in a UNet, most weights lie in the middle; of the nodes no part gets many more than another for it."""
    model = blocks([f"net/b.{k}/x" for k in range(40)])
    for k in range(16, 24):
        model.graph.initializer[k].CopyFrom(numpy_helper.from_array(np.ones((4, 1, 100), np.float32), f"w{k}"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("m39", TensorProto.FLOAT, [4, "rows", 100]))
    whole = outline(model).weights_bytes
    for count in (2, 4, 7):
        parts = parts_of(model, count)
        assert max(outline(part).weights_bytes for part in parts) <= 2.1 * whole / count
        assert max(len(part.graph.node) for part in parts) <= 1.5 * 40 / count


def test_where_indices_are_still_to_be_read_there_is_no_cut():
    """TopK makes floats and integers: between it and what reads the integers no part may end."""
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["top", "indices"], name="/a/TopK"),
        helper.make_node("Neg", ["top"], ["low"], name="/b/Neg"),
        helper.make_node("GatherElements", ["low", "indices"], ["y0"], name="/c/GatherElements"),
        helper.make_node("Neg", ["y0"], ["y1"], name="/d/Neg"),
        helper.make_node("Abs", ["y1"], ["y2"], name="/e/Abs"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in ("x", "y2"))
    graph = helper.make_graph(nodes, "top", [x], [y], [numpy_helper.from_array(np.array([4], np.int64), "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert Layout(model).boundaries == [3, 4]
    for part in parts_of(model, 3):
        assert {value.type.tensor_type.elem_type for value in part.graph.input} == {TensorProto.FLOAT}


def test_a_float_made_of_a_size_is_copied_and_does_not_cross():
    """A part that divides by the root of a size, as attention does, reads the tensor whose size it is, if any."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("ReduceMax", ["root"], ["scale"], keepdims=0),
    ]
    nodes += [helper.make_node("Mul", [f"y{k}" if k else "x", "scale"], [f"y{k + 1}"]) for k in range(4)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "width"]) for name in ("x", "y4"))
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert outline(model).blocks == 4
    assert [value.name for value in part_of(model, (2, 2)).graph.input] == ["x", "y2"]


def test_a_part_has_its_own_weights_only():
    parts = parts_of(blocks([f"net/b.{k}/x" for k in range(8)]), 4)
    names = [[tensor.name for tensor in part.graph.initializer] for part in parts]
    assert list(itertools.chain(*names)) == [f"w{k}" for k in range(8)]


def test_external_weights_stay_where_they_are(tmp_path):
    path = tmp_path / "g.onnx"
    onnx.save(blocks([f"net/b.{k}/x" for k in range(4)]), path, save_as_external_data=True, location="g.data",
              size_threshold=0)  # fmt: skip
    model = onnx.load(path, load_external_data=False)
    parts = parts_of(model, 2)
    entries = [{e.key: e.value for e in t.external_data} for part in parts for t in part.graph.initializer]
    assert {entry["location"] for entry in entries} == {"g.data"}
    assert len({entry["offset"] for entry in entries}) == 4
    assert not any(tensor.raw_data for part in parts for tensor in part.graph.initializer)


def test_the_same_graph_is_cut_the_same_way():
    assert [p.SerializeToString() for p in parts_of(random_model(3), 3)] == [
        p.SerializeToString() for p in parts_of(random_model(3), 3)
    ]


def ort_run(model, wires):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: wires[i.name] for i in session.get_inputs()}), strict=True))


@pytest.mark.parametrize("count", COUNTS)
def test_parts_of_the_denoiser(tiny_bundle, count):
    """fp32: each part has the same operations in the same order, so only ONNX Runtime's fusions can differ: 1e-5."""
    graph = next(g for g in load_bundle(tiny_bundle).graphs("fp32") if g.name == "denoiser")
    model = read_model((tiny_bundle / graph.file).read_bytes(), tiny_bundle)
    parts = parts_of(model, count)
    check_chain(model, parts)
    sizes = [len(part.graph.node) for part in parts]
    assert min(sizes) > 0.4 * max(sizes)
    for dims in ({"rows": 2, "height": 128, "width": 128}, {"rows": 3, "height": 136, "width": 200}):
        rng = np.random.default_rng(0)
        wires = {b.name: rng.standard_normal(b.resolve({**dims, "tokens": 77})).astype(b.dtype) for b in graph.inputs}
        whole = ort_run(model, wires)["noise_pred"]
        for part in parts:
            wires |= ort_run(part, wires)
        assert np.abs(wires["noise_pred"] - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_crosses_the_denoisers_parts_is_little(tiny_bundle, precision):
    """Skips, the time embedding and what flows on; each axis that a symbol says has its name."""
    graph = next(g for g in load_bundle(tiny_bundle).graphs(precision) if g.name == "denoiser")
    model = read_model((tiny_bundle / graph.file).read_bytes(), tiny_bundle)
    own = {value.name for value in model.graph.input}
    for part in parts_of(model, 7):
        crossing = [value for value in part.graph.input if value.name not in own]
        assert len(crossing) <= 8
        for value in crossing:
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_param == "rows"
            assert dims[1].dim_value > 0


def test_a_binding_says_what_a_part_reads(tiny_bundle):
    """part_shapes of the tiny denoiser: latents halve, rounded up, where the UNet halves them."""
    graph = next(g for g in load_bundle(tiny_bundle).graphs("fp32") if g.name == "denoiser")
    model = read_model((tiny_bundle / graph.file).read_bytes(), tiny_bundle)
    dims = [{"rows": k, "height": 8 * s, "width": 8 * s, "tokens": 77} for k, s in ((1, 16), (2, 17), (4, 32))]
    shapes = {b.name: tuple(Binding.resolve(b, one) for one in dims) for b in graph.inputs}
    found = part_shapes(model, (3, 3), shapes)
    sides = {sizes[1][-1] for name, sizes in found.items() if len(sizes[1]) == 4 and not name.startswith("prologue")}
    assert sides <= {17, 9, 5}
    assert {sizes[0][0] for sizes in found.values()} == {1}
