"""In how many parts a graph is built: the rule, what keeps a chain, and what replaces one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.build import build_engines
from engine.bundle import load_bundle
from engine.dialect import load_dialect
from engine.errors import BundleDamaged, ExtraMissing, OptionInvalid, ProfileInvalid
from engine.estimate import GIB, rates
from engine.parts import MIN_NODES, Size, auto_parts, denoiser_of, memory_parts, size_of
from engine.plan import Wires, engines_folder, read_info
from engine.publish import publish_info, rejected_info_path
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle

SD_UNET = 1_720_000_000
"""Bytes of weights."""


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "toy")


@pytest.fixture
def sizes(monkeypatch):
    """The nodes and blocks that graphs are said to have: {name: Size}; looks counts who was looked into."""
    known = {"start": Size(3, 1), "denoiser": Size(1000, 12), "decoder": Size(250, 3)}
    looks: list[str] = []

    def size_of(folder, graph, dialect):
        looks.append(graph.name)
        return known[graph.name]

    monkeypatch.setattr("engine.parts.size_of", size_of)
    return known, looks


def build(folder: Path, target: str = "tensorrt_rtx:8.6", profiles: tuple[str, ...] = ("128@2",), **options):
    return [info.identity for info in build_engines(folder, target, profiles, **options)]


def names(folder: Path, pattern: str = "*/128@2/*") -> list[str]:
    return sorted(path.name for path in engines_folder(folder).glob(pattern) if path.name != ".lock")


def test_the_rule_of_auto(old_gpu):
    old = rates(load_dialect("tensorrt"))
    assert auto_parts(old, SD_UNET, Size(1553, 66), 16, None) == 10
    assert auto_parts(old, SD_UNET, Size(1553, 66), 4, None) == 4
    assert auto_parts(old, SD_UNET, Size(1553, 5), 16, None) == 5
    assert auto_parts(old, 1000, Size(2 * MIN_NODES - 1, 5), 16, None) == 1
    assert auto_parts(old, SD_UNET, Size(1553, 66), 1, 64 * GIB) == 1


def test_the_rule_of_auto_for_memory(gpu):
    new = rates(load_dialect("tensorrt"))
    assert auto_parts(new, SD_UNET, None, 16, 16 * GIB) == 1
    assert auto_parts(new, SD_UNET, Size(1553, 66), 16, 3 * GIB) == 5
    assert memory_parts(new, SD_UNET, 3 * GIB) == 5  # the heaviest has two fifths of the weights
    assert memory_parts(rates(load_dialect("tensorrt"), "bf16"), SD_UNET, 3 * GIB) == 6
    assert memory_parts(new, SD_UNET, GIB) == 1  # nothing helps: preflight says so


def test_the_denoiser_is_the_largest_graph_of_the_loop(folder):
    bundle = load_bundle(folder)
    assert denoiser_of(bundle, bundle.graphs("fp16")).name == "denoiser"
    assert denoiser_of(bundle, ()) is None


def test_a_graphs_size_is_read_from_its_file(folder, rtx, monkeypatch):
    graph, dialect = load_bundle(folder).graphs("fp16")[1], load_dialect("tensorrt_rtx")
    assert size_of(folder, graph, dialect).nodes == 8
    (folder / graph.file).write_bytes(b"no ONNX at all")
    assert size_of(folder, graph, dialect) is None
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    for name in ("engine.cut", "engine.rewrite", "engine.shapes"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    with pytest.raises(ExtraMissing, match=r"zturbo\[rtx\]"):
        size_of(folder, graph, dialect)


def test_8_6_cuts_what_has_many_nodes(folder, old_gpu, stub_builds, gate, sizes, monkeypatch):
    gate(passed)
    monkeypatch.setattr("engine.build.usable_cores", lambda: 16)
    identities = build(folder, "tensorrt")
    assert [identity.name for identity in identities] == [
        "start", *[f"denoiser {index}/6" for index in range(1, 7)], "decoder",
    ]  # fmt: skip
    assert {job.graph.name for job in stub_builds.jobs} == {"start", "denoiser", "decoder"}
    assert all(identity.shapes[0].keys() == {"latents"} for identity in identities if identity.graph == "denoiser")


def test_rtx_looks_into_no_graph_that_fits_into_memory(folder, rtx, stub_builds, sizes, monkeypatch):
    build(folder)
    assert sizes[1] == []
    monkeypatch.setattr("engine.build.free_memory", lambda: 1)
    build(folder)
    assert sizes[1] == []  # valid as it is


def test_a_graph_too_large_for_memory_is_cut(folder, rtx, stub_builds, sizes, monkeypatch):
    monkeypatch.setattr("engine.parts.graph_bytes", lambda bundle, graph: SD_UNET if graph.name == "denoiser" else 10)
    monkeypatch.setattr("engine.build.free_memory", lambda: 3 * GIB)
    assert [identity.part for identity in build(folder)] == [(1, 1), *((index, 5) for index in range(1, 6)), (1, 1)]
    assert sizes[1] == ["denoiser"]


def test_parts_that_are_asked_for_replace_the_chain_that_was(folder, rtx, stub_builds, sizes):
    build(folder)
    stub_builds.names()
    build(folder, parts=3)
    assert stub_builds.names() == [f"128@2/denoiser {index}/3" for index in (1, 2, 3)]
    plans = ["decoder.plan", *[f"denoiser.{index}of3.plan" for index in (1, 2, 3)], "start.plan"]
    assert names(folder) == sorted([*plans, *[f"{plan}.json" for plan in plans]])
    build(folder)  # auto keeps the three, whatever it would have chosen
    build(folder, parts=3)
    assert stub_builds.names() == []
    build(folder, parts=1)
    assert stub_builds.names() == ["128@2/denoiser"]
    assert [name for name in names(folder) if "of3" in name] == []


def test_auto_finishes_the_chain_that_was_begun(folder, rtx, stub_builds, sizes):
    build(folder, parts=3)
    stub_builds.names()
    (engines_folder(folder) / names(folder, "*")[0] / "128@2" / "denoiser.2of3.plan.json").unlink()
    build(folder)
    assert stub_builds.names() == ["128@2/denoiser 2/3"]


def test_auto_chooses_anew_where_nothing_of_a_chain_is_valid(folder, rtx, stub_builds, sizes):
    build(folder, parts=3)
    stub_builds.names()
    write_bundle(folder, scale=2.0)
    build(folder)
    assert stub_builds.names() == ["128@2/denoiser"]
    assert [name for name in names(folder) if "of3" in name] == []


def test_a_whole_chain_wins_over_a_begun_one(folder, rtx, stub_builds, sizes):
    """As where a build ended between the last part and the removal of what it replaces."""
    build(folder)
    whole = {path: path.read_bytes() for path in engines_folder(folder).glob("*/128@2/denoiser*")}
    build(folder, parts=3)
    for path, raw in whole.items():
        path.write_bytes(raw)
    next(engines_folder(folder).glob("*/128@2/denoiser.3of3.plan")).unlink()
    stub_builds.names()
    build(folder)
    assert stub_builds.names() == []
    assert [name for name in names(folder) if "of3" in name] == []


def test_more_parts_than_blocks(folder, rtx, stub_builds, sizes):
    with pytest.raises(OptionInvalid, match=r"parts: got 13; allowed: 1 to 12: graph 'denoiser' has 12 blocks"):
        build(folder, parts=13)
    assert stub_builds.jobs == []


def test_a_damaged_graph_is_left_to_its_build(folder, rtx, stub_builds, monkeypatch):
    """It says which bytes are wrong; nothing is known of its blocks."""
    monkeypatch.setattr("engine.parts.size_of", lambda *_: None)

    def build_one(job):
        raise BundleDamaged("x", actual="y", allowed="z", remedy="Export again.")

    monkeypatch.setattr(stub_builds, "build", build_one)
    with pytest.raises(BundleDamaged):
        build(folder, parts=5)


def test_shared_profiles_are_in_one_plan_per_graph(folder, rtx, stub_builds, sizes):
    identities = build(folder, profiles=("256@2", "128@2"), shared=True)
    assert {identity.profiles for identity in identities} == {("128@2", "256@2")}
    assert len(identities) == 3
    assert all(len(identity.shapes) == 2 for identity in identities)
    assert names(folder, "*/*") == ["128@2+256@2"]
    build(folder, profiles=("128@2", "256@2"), shared=True)
    assert len(stub_builds.names()) == 3
    with pytest.raises(ProfileInvalid, match=r"characters.*--shared"):
        build(folder, profiles=tuple(f"{64 + 8 * k}x128@1-4" for k in range(20)), shared=True)
    assert names(folder, "*/*") == ["128@2+256@2"]


def test_other_precisions_have_folders_of_their_own(folder, rtx, stub_builds, sizes):
    build(folder, precision="bf16")
    assert names(folder, "*/*") == ["128@2.bf16"]
    plan = next(engines_folder(folder).glob("*/*/start.plan"))
    assert read_info(plan, "").identity.precision == "bf16"
    with pytest.raises(OptionInvalid, match="precision: got fp32"):
        build(folder, precision="fp32")


def test_a_rejected_chain_does_not_replace_the_old_one(folder, gpu, stub_builds, sizes, gate):
    from engine.errors import BuildFailed
    from engine.job import GateReply
    from engine.verdict import Verdict

    gate(passed)
    build(folder, "tensorrt")
    rejected = Verdict(status="rejected", reason="too far")
    gate(lambda job: GateReply(verdicts={**passed(job).verdicts, "denoiser": rejected}))
    with pytest.raises(BuildFailed, match="denoiser 1/2"):
        build(folder, "tensorrt", parts=2)
    assert "denoiser.plan.json" in names(folder)
    assert "denoiser.1of2.plan.json" not in names(folder)
    assert rejected_info_path(next(engines_folder(folder).glob("*/128@2/denoiser.plan"))).exists() is False
    info = msgspec.json.decode(next(engines_folder(folder).glob("*/*/denoiser.2of2.plan.rejected.json")).read_bytes())
    assert info["verdict"]["reason"] == "too far"


def test_parts_of_another_cut_are_all_built_again(folder, rtx, stub_builds, sizes, monkeypatch):
    """The rules of the cut change between two builds, and one part is lost: the others do not fit the new one."""
    build(folder, parts=3)
    stub_builds.names()

    def other_cut(folder, graph, parts):
        return [
            Wires(
                inputs=tuple(one.name for one in graph.inputs) if k == 1 else (f"other {k - 1}",),
                outputs=tuple(one.name for one in graph.outputs) if k == n else (f"other {k}",),
            )
            for k, n in parts
        ]

    monkeypatch.setattr("engine.wanted.cut_wires", other_cut)
    monkeypatch.setattr("tests.engine.conftest.cut_wires", other_cut)
    build(folder, parts=3)
    assert stub_builds.names() == []  # a whole chain fits, wherever it is cut
    next(engines_folder(folder).glob("*/128@2/denoiser.2of3.plan.json")).unlink()
    build(folder, parts=3)
    assert stub_builds.names() == [f"128@2/denoiser {index}/3" for index in (1, 2, 3)]


def test_a_chain_whose_parts_do_not_fit_is_built_again_as_a_whole(folder, rtx, stub_builds, sizes):
    build(folder, parts=3)
    stub_builds.names()
    plan = next(engines_folder(folder).glob("*/128@2/denoiser.2of3.plan"))
    info = read_info(plan, "")
    publish_info(plan, msgspec.structs.replace(info, wires=Wires(inputs=("elsewhere",), outputs=info.wires.outputs)))
    told = []
    build(folder, parts=3, on_progress=told.append)
    assert stub_builds.names() == [f"128@2/denoiser {index}/3" for index in (1, 2, 3)]
    reasons = {event.reason for event in told if event.kind == "started"}
    assert reasons == {
        "cut at different places: part 2 of 3 reads 'elsewhere', which no part before it makes"
    }  # fmt: skip


def test_single_files_of_other_chains_go_with_them(folder, rtx, stub_builds, sizes):
    build(folder)
    target = next(engines_folder(folder).glob("*/128@2"))
    for name in ("denoiser.2of7.plan", "denoiser.1of5.plan.rejected", "denoiser.1of5.plan.rejected.json"):
        (target / name).write_bytes(b"left")
    (target / "denoiser.notes").write_bytes(b"kept")
    build(folder)
    assert sorted(path.name for path in target.glob("denoiser*")) == [
        "denoiser.notes", "denoiser.plan", "denoiser.plan.json",
    ]  # fmt: skip
