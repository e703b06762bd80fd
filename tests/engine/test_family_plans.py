"""TensorRT-RTX plans of every tiny family, without a GPU: each graph, fp16 and bf16, whole and in parts."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")

from engine.binding import variant_of
from tests.family_pipelines import family_bundle
from tests.rtx_builds import WORDS, Builds
from tests.tiny_families import FAMILIES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_of_a_family_builds(family, precision, tmp_path):
    """Fused attentions are counted where there is one: every softmax of the denoiser is inside a fused kernel."""
    builds = Builds(family_bundle(family), tmp_path)
    for graph in builds.bundle.graphs(variant_of(precision)):
        info = builds.plan(graph.name, "128@2", precision=precision)
        types, own = info.facts.types, "fp32" if graph.precision == "fp32" else precision
        linear = graph.name == "preview" and set(types) == {"uint8"}  # one kernel, named by what it writes
        assert linear or WORDS[own] in types, graph.name
        assert ("bfloat16" in types) <= (own == "bf16"), graph.name
        if graph.name == "denoiser":
            assert info.facts.fused_attentions == builds.attentions("denoiser", precision) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_builds_in_parts(family, tmp_path):
    builds = Builds(family_bundle(family), tmp_path)
    infos = [builds.plan("denoiser", "128@1-4", part=(k, 3)) for k in (1, 2, 3)]
    assert sum(info.facts.fused_attentions for info in infos) == builds.attentions("denoiser")
