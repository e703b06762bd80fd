"""A graph that was written is split into prologue and rest, its weights among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.binding import Binding, Graph
from engine.bundle import graph_files, load_bundle
from export import weights
from export.check import Sessions
from export.graph import GraphSpec, onnx_from_module
from export.prologue import by_stage, split_graph
from export.reference import relative_error
from export.unet import Denoiser
from export.weights import consolidate

INPUTS = (
    Binding(name="sample", dtype="float32", shape=("rows", 4, "height/8", "width/8"), lifetime="transient"),
    Binding(name="timestep", dtype="float32", shape=("rows",), lifetime="transient"),
    Binding(name="encoder_hidden_states", dtype="float32", shape=("rows", "tokens", 32), lifetime="per_row"),
)
NOISE = Binding(name="noise_pred", dtype="float32", shape=("rows", 4, "height/8", "width/8"), lifetime="transient")


@pytest.fixture
def written(whole_denoiser: Path, tmp_path: Path) -> Graph:
    """The denoiser in a folder of its own."""
    shutil.copy(whole_denoiser, tmp_path / "denoiser.onnx")
    return Graph(name="denoiser", stage="loop", file="denoiser.onnx", precision="fp32", inputs=INPUTS, outputs=(NOISE,))


@pytest.mark.parametrize("limit", [64 << 20, 30_000])
def test_the_chain_computes_what_the_whole_does(
    written: Graph, whole_denoiser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Also where the weights lie beside the file. 1e-5: ONNX Runtime may fuse what was apart before."""
    monkeypatch.setattr(weights, "INLINE_BYTES", limit)
    consolidate(tmp_path / written.file)
    chain = split_graph(written, tmp_path)
    assert [graph.name for graph in chain] == ["prologue", "denoiser"]
    names = {"prologue.onnx", "denoiser.onnx"}
    assert {path.name for path in tmp_path.iterdir()} == names | (
        {f"{n}.data" for n in names} if limit < 1e6 else set()
    )
    rng = np.random.default_rng(0)
    dims = {"rows": 2, "tokens": 77, "height": 128, "width": 136}
    wires = {b.name: rng.standard_normal(b.resolve(dims)).astype(np.float32) for b in INPUTS}
    session = onnxruntime.InferenceSession(str(whole_denoiser), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, wires)
    sessions = Sessions(tmp_path, chain)
    for graph in chain:
        wires |= sessions.run(graph.name, wires)
    assert np.abs(wires["noise_pred"] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet of four levels, in fp16: the form whose reshapes are put together from sizes, deep down too."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, layers_per_block=1, block_out_channels=(32,) * 4, norm_num_groups=32, cross_attention_dim=32,
        attention_head_dim=2, down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    )  # fmt: skip
    halves = [msgspec.structs.replace(b, dtype="float16") for b in (*INPUTS, NOISE)]
    spec = GraphSpec(
        name="denoiser", stage="loop", module=Denoiser(unet.half().eval()), precision="fp16", carried={},
        inputs=(halves[0], INPUTS[1], halves[2]), outputs=(halves[3],),
    )  # fmt: skip
    dims = {"rows": 3, "tokens": 9, "height": 136, "width": 152}
    folder = tmp_path_factory.mktemp("deep")
    arrays = {b.name: np.ones(b.resolve(dims), b.dtype) for b in spec.inputs}
    onnx_from_module(spec, arrays, folder / "denoiser.onnx")
    shutil.copy(folder / "denoiser.onnx", folder / "whole.onnx")
    return folder


@pytest.mark.parametrize(("height", "width"), [(128, 128), (512, 256), (200, 136)])
def test_the_chain_of_a_deep_graph_works_at_every_size(deep: Path, height: int, width: int) -> None:
    """Three halvings make nearby sizes equal: none may be taken for a constant. 2e-3: fp16 rounds where it is split."""
    halves = [msgspec.structs.replace(b, dtype="float16") for b in (*INPUTS, NOISE)]
    inputs = (halves[0], INPUTS[1], halves[2])
    whole = Graph(
        name="denoiser", stage="loop", file="denoiser.onnx", precision="fp16", inputs=inputs, outputs=(halves[3],)
    )
    shutil.copy(deep / "whole.onnx", deep / "denoiser.onnx")
    chain = split_graph(whole, deep)
    rng = np.random.default_rng(0)
    dims = {"rows": 2, "tokens": 77, "height": height, "width": width}
    wires = {b.name: rng.standard_normal(b.resolve(dims)).astype(b.dtype) for b in inputs}
    expected = Sessions(deep, [msgspec.structs.replace(whole, file="whole.onnx")]).run("denoiser", wires)["noise_pred"]
    sessions = Sessions(deep, chain)
    for graph in chain:
        wires |= sessions.run(graph.name, wires)
    assert relative_error(wires["noise_pred"], expected) <= 2e-3


def test_what_bundle_json_says_of_both(written: Graph, tmp_path: Path) -> None:
    prologue, rest = split_graph(written, tmp_path, "prologue_control")
    assert (prologue.name, prologue.stage, prologue.hoisted_from) == ("prologue_control", "once", "denoiser")
    assert (prologue.inputs, prologue.file) == (INPUTS[2:], "prologue_control.onnx")
    assert rest.inputs == (*INPUTS[:2], *prologue.outputs)
    assert (rest.outputs, rest.stage, rest.file) == (written.outputs, "loop", written.file)
    assert prologue.outputs[0].name == "prologue_control_00"
    assert all(b.shape[0] == "rows" and b.lifetime == "per_row" for b in prologue.outputs)


def test_a_graph_without_conditioning_stays_whole(tiny_bundle: Path, tmp_path: Path) -> None:
    graphs = {graph.name: graph for graph in load_bundle(tiny_bundle).graphs("fp32")}
    assert split_graph(graphs["solver"], tmp_path) == (graphs["solver"],)  # no file is read
    assert split_graph(graphs["conditioning"], tmp_path) == (graphs["conditioning"],)  # of stage `once` anyway


def test_a_graph_that_cannot_be_followed_stays_whole(
    written: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator of somebody else's in it, of which ONNX knows no shape."""
    path = tmp_path / written.file
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    model.graph.node.append(onnx.helper.make_node("Fuse", ["sample"], ["fused"], name="own", domain="elsewhere"))
    onnx.save(model, path)
    before = path.read_bytes()
    assert split_graph(written, tmp_path) == (written,)
    assert path.read_bytes() == before
    assert "'denoiser' has no prologue" in caplog.text
    assert "Fuse 'own' is no operator" in caplog.text


def test_a_prologue_runs_with_what_runs_once(tiny_bundle: Path) -> None:
    graphs = list(load_bundle(tiny_bundle).graphs("fp16"))
    backwards = sorted(graphs, key=lambda graph: graph.name != "prologue")
    assert [graph.stage for graph in by_stage(backwards)] == ["once"] * 4 + ["loop"] * 2 + ["final", "preview"]
    for graph in graphs:
        assert len(graph_files(load_bundle(tiny_bundle), graph)) == 1
