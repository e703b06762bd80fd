"""The contender that is a backend of ours: on ONNX Runtime, on a fake GPU, with fused attention."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.bench import facts
from benchmarks.bench.by_backend import BackendContender
from benchmarks.bench.fused import DOMAIN, fuse, fused_copy
from benchmarks.loop import dims_of
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable
from tests.fake_plans import Shelf

ort = pytest.importorskip("onnxruntime")
ASKED = {"prompt": "a cat", "seed": 0, "steps": 3, "count": 1}


def opened(bundle, size=128, **settings):
    contender = BackendContender()
    return contender, contender.open(bundle=str(bundle), size=size, settings={"precision": "fp32", **settings})


def test_on_a_cpu(tiny_bundle, tmp_path):
    contender, told = opened(tiny_bundle, backend="onnxruntime", threads=1)
    assert (told["precision"], told["clock"]) == ("fp32", "host")
    bundle = load_bundle(tiny_bundle)
    assert told["weights_bytes"] == facts.variant_bytes(bundle, "fp32") > facts.variant_bytes(bundle, "fp16")
    found = contender.paint(**ASKED, out=str(tmp_path / "a.npy"))
    assert np.load(tmp_path / "a.npy").shape == (1, 128, 128, 3)
    assert len(found["steps_ms"]) == 3
    assert sum(found["stages"].values()) <= found["seconds"]
    for stage, seconds in found["stages"].items():
        assert 0 < found["device_ms"][stage] <= 1e3 * seconds, stage
    parts = contender.parts(repeats=2)["parts"]
    assert set(parts) == {"conditioning", "start", "prologue", "denoiser", "solver", "decoder", "step"}
    assert all(len(times) == 2 for times in parts.values())
    assert contender.busy(prompt="a cat", steps=2) == {}
    contender.paint(**{**ASKED, "count": 2}, out=str(tmp_path / "b.npy"))
    both = np.load(tmp_path / "b.npy")
    assert both.shape == (2, 128, 128, 3)
    assert np.abs(both[0].astype(int) - np.load(tmp_path / "a.npy")[0]).max() <= 1, "the first is the one alone"


def test_fused_attention_paints_the_same(tiny_bundle, tmp_path):
    plain, _ = opened(tiny_bundle, backend="onnxruntime", threads=1)
    fused, told = opened(tiny_bundle, backend="onnxruntime", threads=1, attention="fused")
    assert told["attentions_fused"] > 0
    pictures = []
    for index, one in enumerate((plain, fused)):
        one.paint(**ASKED, out=str(tmp_path / f"{index}.npy"))
        pictures.append(np.load(tmp_path / f"{index}.npy").astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_fused_copy_is_a_whole_bundle_and_leaves_the_first_alone(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    before = (tiny_bundle / "bundle.json").read_bytes()
    folder, count = fused_copy(tiny_bundle, bundle, "fp32", dims_of(bundle, 64))
    copy = load_bundle(folder)
    kinds = [node.op_type for node in onnx.load(str(folder / "graphs" / "fp32" / "denoiser.onnx")).graph.node]
    assert kinds.count("MultiHeadAttention") <= count
    assert (folder / copy.source.path).is_dir(), "torch still finds the model"
    assert (tiny_bundle / "bundle.json").read_bytes() == before
    assert load_bundle(tiny_bundle).files == bundle.files
    assert fused_copy(tiny_bundle, bundle, "fp16", dims_of(bundle, 64))[1] == count


def test_a_masked_attention_stays_as_it_is():
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,2,4,8] q, float[1,2,8,4] k, float[1,2,4,8] v, float[4] m) '
        "=> (float[1,2,4,8] y) { s = MatMul(q, k) a = Add(s, m) p = Softmax<axis = -1>(a) y = MatMul(p, v) }"
    )
    model = onnx.parser.parse_model(text)
    assert fuse(model, {}) == 0
    plain = onnx.parser.parse_model(text.replace("a = Add(s, m) ", "").replace("(a)", "(s)"))
    shapes = {"q": (1, 2, 4, 8), "k": (1, 2, 8, 4), "v": (1, 2, 4, 8), "m": (4,)}
    wanted = onnx.ModelProto()
    wanted.CopyFrom(plain)
    assert fuse(plain, shapes) == 1
    assert DOMAIN in {opset.domain for opset in plain.opset_import}
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    results = [ort.InferenceSession(one.SerializeToString()).run(None, feeds)[0] for one in (wanted, plain)]
    assert np.abs(results[0] - results[1]).max() < 1e-5


@pytest.fixture
def shelf(monkeypatch, tmp_path, tiny_bundle):
    made = Shelf(monkeypatch, Path(shutil.copytree(tiny_bundle, tmp_path / "tiny", copy_function=shutil.copy)))
    made.put("128@2", precision="fp32")
    return made


@pytest.mark.parametrize("capture", [True, False])
def test_on_a_gpu_by_its_own_clock(shelf, capture):
    contender, told = opened(shelf.folder, 128, backend="tensorrt", capture=capture)
    assert told["clock"] == "gpu"
    assert told["build"]["plans"] == len(told["build"]["by_plan"]) > 3
    assert told["build"]["longest_s"] <= told["build"]["seconds"]
    assert told["weights_bytes"] > 0
    for _ in range(3):
        found = contender.paint(**ASKED, out=None)
    assert set(found["device_ms"]) == {"conditioning", "decode", "loop"}
    assert len(found["steps_ms"]) == 3
    assert found["device_ms"]["loop"] == pytest.approx(sum(found["steps_ms"]))
    parts = contender.parts(repeats=2)["parts"]
    assert {"denoiser", "decoder", "step"} <= parts.keys()
    captured = contender._pipeline.backend.captures.captured
    assert captured > 0 if capture else captured == 0


def test_a_backend_that_cannot_run_says_why(tiny_bundle):
    with pytest.raises(BackendUnavailable):
        opened(tiny_bundle, backend="onnxruntime", device="cuda")
