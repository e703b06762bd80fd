"""One graph to one plan: what each flavour is told, and what its refusals become."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from engine.binding import Graph
from engine.bundle import Bundle, load_bundle
from engine.compile import Compiled, plan_from_onnx
from engine.dialect import FLAVOURS, Dialect
from engine.errors import BuildFailed, ExtraMissing
from engine.profiles import parse_profile
from tests.fake_tensorrt import fake
from tests.toy_bundle import GRAPHS, IMAGES, LATENTS, MODELS, write_bundle

START, DENOISER, DECODER = GRAPHS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("toy")))


def compiled(
    kind: str, graph: Graph, bundle: Bundle, refused: frozenset[str] = frozenset(), raw: bytes = b""
) -> Compiled:
    module = fake(kind)
    module.refused = refused
    dialect = Dialect(FLAVOURS["tensorrt_rtx" if kind == "rtx" else "tensorrt"], module)
    profile = parse_profile("128@2", bundle)
    shapes = {binding.name: profile.ranges(binding) for binding in graph.inputs}
    capabilities = dialect.compute_capabilities()
    raw = raw or MODELS[graph.name]().SerializeToString()
    return plan_from_onnx(dialect, raw, Path(graph.file), graph, shapes, capabilities)


def head(made: Compiled) -> dict:
    return json.loads(made.plan.partition(b"\n")[0])


def test_86_gets_group_norm_rewritten_and_fp32_islands_held(bundle):
    made = compiled("8.6", DENOISER, bundle)
    assert made.mode.name == "fp16, fp32 islands held"
    assert head(made)["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert head(made)["held"] == ["angle", "wave"]
    assert head(made)["sharing"]
    assert b"InstanceNormalization" not in made.plan


def test_86_builds_fp32_graphs_without_flags(bundle):
    assert head(compiled("8.6", START, bundle))["flags"] == []


def test_a_mode_that_is_refused_is_followed_by_the_next(bundle):
    made = compiled("8.6", DENOISER, bundle, frozenset({"OBEY_PRECISION_CONSTRAINTS"}))
    assert made.mode.name == "fp16, fp32 islands preferred"


@pytest.mark.parametrize("kind", ["10", "11", "rtx"])
def test_strongly_typed_flavours_get_the_graph_as_it_is(bundle, kind):
    made = compiled(kind, DENOISER, bundle)
    assert (head(made)["flags"], head(made)["held"]) == ([], [])
    assert made.plan.endswith(MODELS["denoiser"]().SerializeToString())


def test_a_portable_flavour_is_told_its_compute_capabilities(bundle):
    assert head(compiled("rtx", DECODER, bundle))["capabilities"] == ["SM86", "SM89", "SM120"]
    assert head(compiled("10", DECODER, bundle))["capabilities"] == []


def test_the_profile_is_the_one_asked_for(bundle):
    (shapes,) = head(compiled("10", DENOISER, bundle))["profiles"]
    assert shapes == {"latents": [[1, 4, 16, 16], [1, 4, 16, 16], [2, 4, 16, 16]]}


def test_a_refusal_carries_its_own_lines(bundle):
    with pytest.raises(BuildFailed, match=r"refused with \['FP16', 'OBEY_PRECISION_CONSTRAINTS'\]"):
        compiled("8.6", DENOISER, bundle, frozenset({"FP16"}))


@pytest.mark.parametrize("kind", ["8.6", "10"])
def test_what_does_not_parse_is_named(bundle, kind):
    with pytest.raises(BuildFailed, match=r"graph 'denoiser': got .*denoiser\.onnx does not parse"):
        compiled(kind, DENOISER, bundle, raw=b"no ONNX at all")


def test_onnx_is_needed_only_where_a_graph_is_rewritten(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "engine.rewrite", raising=False)
    with pytest.raises(ExtraMissing, match=r"onnx cannot be imported.*pip install 'zturbo\[tensorrt\]'"):
        compiled("8.6", DENOISER, bundle, raw=b"any")
    with pytest.raises(BuildFailed):
        compiled("10", DENOISER, bundle, raw=b"any")


def test_wires_that_are_not_the_bundles_are_refused(bundle):
    other = Graph(name="start", stage="once", file="x", precision="fp32", inputs=START.inputs, outputs=(IMAGES,))
    with pytest.raises(BuildFailed, match="the bundle says images, noise"):
        compiled("10", other, bundle)
    half = Graph(name="decoder", stage="final", file="x", precision="fp16", inputs=(LATENTS,), outputs=DECODER.outputs)
    with pytest.raises(BuildFailed, match="the bundle says images, latents"):
        compiled("10", half, bundle)
