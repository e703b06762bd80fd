"""Real TensorRT-RTX builds, without a GPU: every attention of a UNet in one kernel, each precision, profiles, parts."""

from __future__ import annotations

import pytest

from engine.binding import variant_of
from engine.errors import BuildFailed
from engine.plan import WHOLE
from tests.rtx_builds import WORDS, Builds

pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def tiny(tiny_bundle, tmp_path) -> Builds:
    return Builds(tiny_bundle, tmp_path)


def test_every_attention_of_a_unet_is_one_kernel(tiny):
    """Head size 32; half of them read K and V that the prologue made."""
    info = tiny.plan("denoiser")
    assert info.facts.fused_attentions == tiny.attentions("denoiser") == 14
    assert info.facts.types["float16"] > info.facts.types["float32"]  # what is left: normalizations
    assert info.facts.scratch_bytes
    assert info.warnings == 0


@pytest.mark.slow
@pytest.mark.parametrize("profiles", [["256@2"], ["128@2", "256@1-4"], ["dynamic:128-256@1-4"]])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_attention_of_emoji_is_one_kernel(emoji_bundle, tmp_path, precision, profiles):
    emoji = Builds(emoji_bundle, tmp_path)
    info = emoji.plan("denoiser", *profiles, precision=precision)
    assert info.facts.fused_attentions == emoji.attentions("denoiser") == 14
    assert len(info.identity.shapes) == len(profiles)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_graph_builds_in_every_precision(tiny, precision):
    for graph in tiny.bundle.graphs(variant_of(precision)):
        types = tiny.plan(graph.name, precision=precision).facts.types
        own = "fp32" if graph.precision == "fp32" else precision
        if graph.name == "preview" and set(types) == {"uint8"}:
            continue  # a linear map is one kernel, which the log names by what it writes
        assert WORDS[own] in types, graph.name
        assert ("bfloat16" in types) == (own == "bf16"), graph.name
        assert ("float16" in types) <= (precision != "fp32"), graph.name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_preview_with_a_decoder_of_its_own_builds(drawn_bundle, tmp_path, precision):
    info = Builds(drawn_bundle, tmp_path).plan("preview", "128@2", "dynamic:128-256@1-4", precision=precision)
    assert WORDS[precision] in info.facts.types
    assert info.warnings == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("count", [2, 3])
def test_parts_build_and_keep_their_attentions_fused(tiny, precision, count):
    infos = [tiny.plan("denoiser", precision=precision, part=(k, count)) for k in range(1, count + 1)]
    fused = sum(info.facts.fused_attentions for info in infos)
    assert fused == (0 if precision == "fp32" else tiny.attentions("denoiser", precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("part", [WHOLE, (1, 2), (2, 2)])
def test_a_denoiser_that_takes_loras_builds(lora_bundle, tmp_path, precision, part):
    """Its products are batched and of three axes; the attentions stay in one kernel each."""
    builds = Builds(lora_bundle, tmp_path)
    info = builds.plan("denoiser", "128@1-4", precision=precision, part=part)
    if part == WHOLE:
        assert info.facts.fused_attentions == (0 if precision == "fp32" else builds.attentions("denoiser", precision))
    assert "lora" in info.identity.shapes[0]


@pytest.mark.slow
def test_one_plan_for_several_profiles_and_compute_capabilities(tiny):
    capabilities = ("8.6", "8.9", "12.0")
    info = tiny.plan("denoiser", "128@2", "dynamic:128-256@1-4", part=(2, 2), capabilities=capabilities)
    assert info.identity.capabilities == capabilities
    assert info.facts.fused_attentions > 0


def test_bf16_for_a_gpu_without_it_is_refused_before_the_build(tiny):
    with pytest.raises(BuildFailed, match=r"got bf16; allowed: fp16, fp32: TensorRT-RTX .* for 7\.5, 8\.9"):
        tiny.plan("denoiser", precision="bf16", capabilities=("7.5", "8.9"))
