"""TensorRT-RTX plans of every tiny family, without a GPU: each graph, fp16 and bf16, whole and in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")

from engine.binding import variant_of
from tests.family_pipelines import family_bundle
from tests.rtx_builds import WORDS, Builds
from tests.tiny_families import FAMILIES

BUNDLES = {"zimage": "zimage_bundle", "zimage masked": "zimage_masked"}
"""Families whose bundles are fixtures of all tests."""


@pytest.fixture
def folder(request, family) -> Path:
    """A family's bundle."""
    return request.getfixturevalue(BUNDLES[family]) if family in BUNDLES else family_bundle(family)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("family", [*FAMILIES, *BUNDLES])
def test_every_graph_of_a_family_builds(family, folder, precision, tmp_path):
    builds = Builds(folder, tmp_path)
    for graph in builds.bundle.graphs(variant_of(precision)):
        info = builds.plan(graph.name, "128@2", precision=precision)
        types, own = info.facts.types, "fp32" if graph.precision == "fp32" else precision
        linear = graph.name == "preview" and set(types) == {"uint8"}  # one kernel, named by what it writes
        assert linear or WORDS[own] in types, graph.name
        assert ("bfloat16" in types) <= (own == "bf16"), graph.name
        if graph.name == "denoiser" or (family in BUNDLES and graph.name in ("conditioning", "prologue")):
            assert info.facts.fused_attentions == builds.attentions(graph.name, precision) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *BUNDLES])
def test_a_family_builds_in_parts(family, folder, tmp_path):
    builds = Builds(folder, tmp_path)
    infos = [builds.plan("denoiser", "128@1-4", part=(k, 3)) for k in (1, 2, 3)]
    assert sum(info.facts.fused_attentions for info in infos) == builds.attentions("denoiser")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_zimages_denoiser_builds_for_captions_of_any_length_with_all_attentions_fused(
    zimage_bundle, precision, tmp_path
):
    """The quick one of these tests; sizes that need filling, and captions of 32 to 512 tokens, in one plan."""
    builds = Builds(zimage_bundle, tmp_path)
    info = builds.plan("denoiser", "dynamic:64-144@1-4", precision=precision)
    assert info.facts.fused_attentions == builds.attentions("denoiser", precision) == 5
