"""One graph to one plan: what each flavour is told, and what its refusals become."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.binding import Graph, PlanPrecision
from engine.bundle import Bundle, load_bundle
from engine.compile import Compiled, Source, plan_from_onnx
from engine.dialect import FLAVOURS, Dialect
from engine.errors import BuildFailed, ExtraMissing
from engine.plan import WHOLE, Options, Part, identity_of
from engine.profiles import parse_profile
from engine.timing import TimingCache
from tests.fake_tensorrt import fake
from tests.toy_bundle import GRAPHS, IMAGES, LATENTS, MODELS, constant, write_bundle

START, DENOISER, DECODER = GRAPHS
DEFAULTS = Options()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("toy")))


def compiled(
    kind: str, graph: Graph, bundle: Bundle, refused: frozenset[str] = frozenset(), raw: bytes = b"", *,
    part: Part = WHOLE, precision: PlanPrecision = "fp16", profiles: tuple[str, ...] = ("128@2",),
    options: Options = DEFAULTS, timing: Path | None = None, path: Path | None = None,
) -> Compiled:  # fmt: skip
    module = fake(kind)
    module.refused = refused
    dialect = Dialect(FLAVOURS["tensorrt_rtx" if kind == "rtx" else "tensorrt"], module)
    raw = raw or MODELS[graph.name]().SerializeToString()
    identity = identity_of(
        bundle, graph, precision, [parse_profile(text, bundle) for text in profiles], dialect.flavour.name,
        dialect.version, dialect.compute_capabilities() or ("9.0",), part,
    )  # fmt: skip
    path = path or Path(graph.file)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.tmp"
        source = Source(read=lambda: raw, path=path, weights=weights, graph=graph, identity=identity)
        made = plan_from_onnx(dialect, source, options, TimingCache(timing))
        assert list(Path(folder).iterdir()) == []
    return made


def head(made: Compiled) -> dict:
    return json.loads(bytes(made.plan).partition(b"\n")[0])


def model(made: Compiled) -> onnx.ModelProto:
    return onnx.load_model_from_string(bytes(made.plan).partition(b"\n")[2])


def test_86_gets_group_norm_rewritten_and_fp32_islands_held(bundle):
    made = compiled("8.6", DENOISER, bundle)
    assert made.mode.name == "fp16, fp32 islands held"
    assert head(made)["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert head(made)["held"] == ["angle", "wave"]
    assert head(made)["sharing"]
    assert b"InstanceNormalization" not in bytes(made.plan)


@pytest.mark.parametrize(
    ("kind", "stage", "held"), [("8.6", "once", True), ("8.6", "loop", False), ("10", "once", False)]
)
def test_86_computes_a_text_encoders_norms_in_fp32(bundle, kind, stage, held):
    raw = MODELS["denoiser"]()
    raw.graph.node[-1].output[0] = "biased"
    raw.graph.node.append(helper.make_node("LayerNormalization", ["biased", "one", "zero"], ["sample"], axis=-1))
    raw.graph.initializer.extend(constant(name, [k], np.float16) for k, name in enumerate(("zero", "one")))
    made = compiled(kind, msgspec.structs.replace(DENOISER, stage=stage), bundle, raw=raw.SerializeToString())
    (norm,) = (
        node for node in model(made).graph.node if node.op_type == "LayerNormalization" and "one" in node.input[1]
    )
    assert (norm.output[0] != "sample", norm.output[0] in head(made)["held"]) == (held, held)


def test_86_builds_fp32_graphs_without_flags(bundle):
    told = head(compiled("8.6", START, bundle))
    assert (told["flags"], told["cleared"]) == ([], ["TF32"])


@pytest.mark.parametrize("kind", ["8.6", "10", "11", "rtx"])
def test_fp32_means_fp32_and_fp16_may_sum_as_it_likes(bundle, kind):
    assert head(compiled(kind, START, bundle))["cleared"] == ["TF32"]
    assert head(compiled(kind, DENOISER, bundle))["cleared"] == []


def test_a_mode_that_is_refused_is_followed_by_the_next(bundle):
    made = compiled("8.6", DENOISER, bundle, frozenset({"OBEY_PRECISION_CONSTRAINTS"}))
    assert made.mode.name == "fp16, fp32 islands preferred"


def test_86_gets_axes_of_one_size_as_constants(bundle):
    def axes(*profiles: str, kind: str = "8.6") -> list:
        made = model(compiled(kind, DENOISER, bundle, profiles=profiles))
        return [dim.dim_value or dim.dim_param for dim in made.graph.input[0].type.tensor_type.shape.dim]

    assert axes("128@2", kind="10") == axes("dynamic:64-512@1-4") == ["samples", 4, "height/8", "width/8"]
    assert axes("128@2") == ["samples", 4, 16, 16]
    assert axes("128@2", "256x128@2") == ["samples", 4, 16, "width/8"]


def test_what_has_no_fp16_kernel_computes_in_fp32_outside_the_loop(bundle, monkeypatch):
    module = fake("8.6")
    monkeypatch.setattr(module, "no_kernel", {"Add"})
    monkeypatch.setattr("tests.engine.test_compile.fake", lambda _: module)
    made = compiled("8.6", msgspec.structs.replace(DENOISER, stage="once"), bundle)
    assert made.mode.name == "fp16 computed in fp32"
    assert {"weighted", "sample_wide"} <= set(head(made)["held"])
    assert head(made)["types"] == {"latents": "FLOAT", "sample": "HALF"}
    with pytest.raises(BuildFailed, match="Could not find any implementation"):
        compiled("8.6", DENOISER, bundle)


@pytest.mark.parametrize("kind", ["10", "11", "rtx"])
def test_strongly_typed_flavours_get_the_graph_as_it_is(bundle, kind):
    made = compiled(kind, DENOISER, bundle)
    assert (head(made)["flags"], head(made)["held"]) == ([], [])
    assert bytes(made.plan).endswith(MODELS["denoiser"]().SerializeToString())


def test_a_portable_flavour_is_told_its_compute_capabilities(bundle):
    assert head(compiled("rtx", DECODER, bundle))["capabilities"] == ["SM86", "SM89", "SM120"]
    assert head(compiled("10", DECODER, bundle))["capabilities"] == []


def test_the_profile_is_the_one_asked_for(bundle):
    (shapes,) = head(compiled("10", DENOISER, bundle))["profiles"]
    assert shapes == {"latents": [[1, 4, 16, 16], [1, 4, 16, 16], [2, 4, 16, 16]]}


def test_several_profiles_are_one_plans(bundle):
    told = head(compiled("10", DENOISER, bundle, profiles=("128@2", "dynamic:64-512@1-4")))
    assert [profile["latents"][2] for profile in told["profiles"]] == [[2, 4, 16, 16], [4, 4, 64, 64]]


def test_options_are_told_where_they_are_given(bundle):
    told = head(compiled("10", DENOISER, bundle, options=Options(level=5, workspace_mib=64)))
    assert (told["level"], told["pools"]) == (5, {"WORKSPACE": 64 << 20})
    told = head(compiled("10", DENOISER, bundle))
    assert (told["level"], told["pools"]) == (3, {})


@pytest.mark.parametrize("kind", ["8.6", "10", "11", "rtx"])
def test_facts_are_of_the_profile_with_the_fewest_attentions(bundle, kind):
    facts = compiled(kind, DENOISER, bundle, profiles=("128@2", "64@1-2")).facts
    nodes = len(model(compiled(kind, DENOISER, bundle)).graph.node)
    assert (facts.layers, facts.fused_attentions, facts.types) == (nodes, 1, {"float16": nodes})
    assert facts.scratch_bytes == (2000 if kind == "rtx" else 4096)


@pytest.mark.parametrize("kind", ["8.6", "10", "rtx"])
def test_parts_are_wired_by_name_and_type(bundle, kind):
    first, second = (compiled(kind, DENOISER, bundle, part=(k, 2)) for k in (1, 2))
    crossing = dict.fromkeys((value.name for value in model(first).graph.output), "HALF")
    assert crossing.keys() == {value.name for value in model(second).graph.input}
    assert head(first)["types"] == {"latents": "FLOAT", **crossing}
    assert head(second)["types"] == {"sample": "HALF", **crossing}
    for low, opt, high in head(second)["profiles"][0].values():
        assert (low[0], opt[0], high[0]) == (1, 1, 2)


def test_a_part_has_the_bundles_types_at_the_bundles_wires(bundle):
    (sample,) = DENOISER.outputs
    wide = msgspec.structs.replace(DENOISER, outputs=(msgspec.structs.replace(sample, dtype="float32"),))
    with pytest.raises(BuildFailed, match="the bundle says float32"):
        compiled("10", wide, bundle, part=(2, 2))


def test_a_part_that_there_is_not_is_refused(bundle):
    with pytest.raises(BuildFailed, match=r"graph 'denoiser 1/99': got .*part 1 of 99"):
        compiled("10", DENOISER, bundle, part=(1, 99))


@pytest.fixture
def unopened(monkeypatch):
    """No plan is opened: ONNX Runtime, which the made-up engine computes with, lacks these operators in bf16."""
    monkeypatch.setattr("tests.fake_tensorrt._Runtime.deserialize_cuda_engine", lambda runtime, raw: None)


def test_where_a_plan_cannot_be_opened_the_log_tells_the_scratch(bundle, unopened):
    facts = compiled("10", DENOISER, bundle).facts
    assert (facts.layers, facts.scratch_bytes) == (None, 1000)


@pytest.mark.parametrize("kind", ["10", "11", "rtx"])
def test_bf16_changes_the_fp16_graphs_inside_and_no_other(bundle, kind, unopened):
    made = compiled(kind, DENOISER, bundle, precision="bf16")
    assert head(made)["types"] == {"latents": "FLOAT", "sample": "HALF"}
    weight = next(tensor for tensor in model(made).graph.initializer if tensor.name == "weight")
    assert weight.data_type == TensorProto.BFLOAT16
    assert bytes(compiled(kind, START, bundle, precision="bf16").plan).endswith(MODELS["start"]().SerializeToString())


def test_bf16_of_a_part_crosses_in_fp32(bundle):
    first = compiled("rtx", DENOISER, bundle, precision="bf16", part=(1, 2))
    second = compiled("rtx", DENOISER, bundle, precision="bf16", part=(2, 2))
    crossing = dict.fromkeys((value.name for value in model(first).graph.output), "FLOAT")
    assert head(first)["types"] == {"latents": "FLOAT", **crossing}
    assert head(second)["types"] == {"sample": "HALF", **crossing}


def test_bf16_reads_weights_that_lie_outside(bundle, tmp_path, unopened):
    folder = write_bundle(tmp_path / "toy", scale=3.0, external=True)
    path = folder / DENOISER.file
    made = compiled("10", DENOISER, bundle, precision="bf16", raw=path.read_bytes(), path=path)
    weight = next(tensor for tensor in model(made).graph.initializer if tensor.name == "weight")
    assert weight.data_type == TensorProto.BFLOAT16
    assert np.frombuffer(weight.raw_data, "<u2").tolist() == [0x4040] * 4  # 3.0


def test_bf16_is_refused_where_there_is_none(bundle):
    with pytest.raises(BuildFailed, match=r"got bf16; allowed: fp16, fp32: TensorRT 8\.6\.0 for 9\.0"):
        compiled("8.6", DENOISER, bundle, precision="bf16")


def test_timings_are_kept_and_read(bundle, tmp_path):
    timing = tmp_path / "target" / "timing.cache"
    assert compiled("10", DENOISER, bundle, timing=timing).warnings == 0
    version, *timed = timing.read_text().splitlines()
    assert version == "10.13.0.35"
    assert "normed" in timed
    assert compiled("10", START, bundle, timing=timing).warnings == 0
    assert set(timing.read_text().splitlines()) == {version, *timed, "first", "latents"}


def test_timings_of_another_version_are_a_miss_and_replaced(bundle, tmp_path):
    timing = tmp_path / "timing.cache"
    timing.write_text("8.6.0\nother")
    assert compiled("10", START, bundle, timing=timing).warnings == 1
    assert timing.read_text().splitlines() == ["10.13.0.35", "first", "latents"]


def test_timings_that_make_a_build_fail_are_a_miss_and_never_used_again(bundle, tmp_path):
    timing = tmp_path / "timing.cache"
    timing.write_text("8.6.0\npoison")
    made = compiled("8.6", DENOISER, bundle, timing=timing)
    assert (made.warnings, made.mode.name) == (1, "fp16, fp32 islands held")
    poisoned = timing.exists() and b"poison" in timing.read_bytes()
    assert not poisoned
    assert compiled("8.6", DENOISER, bundle, timing=timing).warnings == 0


def test_timings_are_not_blamed_for_what_fails_without_them(bundle, tmp_path):
    timing = tmp_path / "timing.cache"
    timing.write_text("10.13.0.35\nany")
    with pytest.raises(BuildFailed):
        compiled("10", DENOISER, bundle, frozenset({"no flags"}), timing=timing)
    assert timing.read_text() == "10.13.0.35\nany"


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
