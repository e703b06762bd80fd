"""Builds of a whole bundle: real TensorRT-RTX where it is installed, in processes, without a GPU; and made-up ones."""

from __future__ import annotations

import enum
import importlib.util
import shutil
from pathlib import Path

import onnx
import pytest
from onnx.numpy_helper import to_array

from engine.build import BuildEvent, build_engines
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, BuildFailed, BundleDamaged, OptionInvalid, OutputError, ProfileInvalid
from engine.machine import usable_cores
from engine.plan import Options, engines_folder, read_info, verified_plan
from engine.site import site_of
from engine.target import parse_target
from engine.worker import build_plan
from tests import fake_cuda, fake_tensorrt
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle

real_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
TARGET = "tensorrt_rtx:8.6,8.9"


def build(folder: Path, *profiles: str, target: str = TARGET, **options) -> dict[str, str]:
    """{profile/plan: kind, reason} of a build's outcome."""
    events: list[BuildEvent] = []
    infos = build_engines(folder, target, profiles or ("128@2",), jobs=2, on_progress=events.append, **options)
    finished = [event for event in events if event.kind in ("kept", "renewed", "built")]
    assert [event.done for event in finished] == list(range(1, len(infos) + 1))
    assert {event.total for event in events if event.kind != "remark"} == {len(infos)}
    return {f"{event.profile}/{event.plan}": f"{event.kind}: {event.reason}" for event in finished}


def target_folder(folder: Path) -> Path:
    return engines_folder(folder) / site_of(parse_target(TARGET)).target.folder


@pytest.fixture
def in_process(monkeypatch, gate):
    """Builds run here, and see the fakes; the parity gate lets everything pass."""
    monkeypatch.setattr("engine.build.run_jobs", lambda jobs, *_: ((job, build_plan(job)) for job in jobs))
    gate(passed)


@real_rtx
def test_builds_what_is_missing_or_stale_and_nothing_else(tmp_path):
    """The denoiser's weights lie beside its ONNX file, which stays the same when they change."""
    folder = write_bundle(tmp_path / "toy", external=True)
    graph = (folder / "graphs" / "denoiser.onnx").read_bytes()
    assert set(build(folder).values()) == {"built: no plan"}
    assert set(build(folder).values()) == {"kept: valid"}

    plans = target_folder(folder) / "128@2"
    before = (plans / "denoiser.plan").read_bytes()
    write_bundle(folder, scale=2.0, external=True)
    assert (folder / "graphs" / "denoiser.onnx").read_bytes() == graph
    kinds = build(folder)
    assert (plans / "denoiser.plan").read_bytes() != before
    assert kinds.pop("128@2/denoiser").startswith("built: graph file it was built from: sha256")
    assert set(kinds.values()) == {"renewed: the bundle changed, this graph did not"}
    assert set(build(folder, "128@2", "64@1").values()) == {"kept: valid", "built: no plan"}

    bundle = load_bundle(folder)
    for plan in plans.glob("*.plan"):
        info = read_info(plan, "")
        assert info.identity.bundle_sha256 == bundle.sha256
        assert info.identity.capabilities == ("8.6", "8.9")
        assert info.machine is None
        assert info.verdict.status == "unverified"
        assert info.verdict.reason.startswith("built for 8.6, 8.9")
        assert verified_plan(plan, info, "")


def test_bf16_for_a_compute_capability_that_lacks_it_is_told_before_anything_is_built(tmp_path, rtx, stub_builds):
    folder = write_bundle(tmp_path / "toy")
    rtx.ComputeCapability = enum.Enum("ComputeCapability", ["NONE", "SM75", "SM86", "SM120"])
    with pytest.raises(OptionInvalid, match=r"got bf16, which compute capability 7\.5 lacks") as caught:
        build_engines(folder, "tensorrt_rtx", ["128@2"], precision="bf16")
    assert caught.value.allowed == "fp16, fp32"
    assert caught.value.remedy == "Use `--target tensorrt_rtx:8.6,12.0`, or another precision."
    with pytest.raises(OptionInvalid, match=r"Choose another precision"):
        build_engines(folder, "tensorrt_rtx:7.5", ["128@2"], precision="bf16")
    assert not engines_folder(folder).exists()
    assert len(build_engines(folder, "tensorrt_rtx:8.6,12.0", ["128@2"], precision="bf16")) == 3


@real_rtx
def test_profiles_that_share_one_plan(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    kinds = build(folder, "128@2", "64@1", shared=True)
    assert kinds == {f"64@1 + 128@2/{graph}": "built: no plan" for graph in ("start", "denoiser", "decoder")}
    assert set(build(folder, "64@1", "128@2", shared=True).values()) == {"kept: valid"}


@real_rtx
def test_a_graph_that_does_not_parse_fails_with_tensorrts_words_and_leaves_nothing(tmp_path):
    folder = write_bundle(tmp_path / "toy", broken="decoder")
    with pytest.raises(BuildFailed, match=r"graph 'decoder'.*does not parse; .*[Ff]ail"):
        build(folder)
    left = {path.name for path in folder.rglob("*") if "engines" in path.parts and path.is_file()}
    assert not {name for name in left if name.startswith("decoder") or name.endswith(".tmp")}


@real_rtx
@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.onnx.data"])
def test_a_graph_whose_files_changed_after_export_is_not_built(tmp_path, name):
    folder = write_bundle(tmp_path / "toy", external=True)
    path = folder / "graphs" / name
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(BundleDamaged, match=rf"{name}: got sha256"):
        build(folder)
    assert not (target_folder(folder) / "128@2" / "denoiser.plan").exists()


@real_rtx
def test_what_is_asked_for_is_checked_before_anything_is_built(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    with pytest.raises(OptionInvalid, match=r"compute capability 9\.0.*8\.9"):
        build(folder, target="tensorrt_rtx:9.0")
    with pytest.raises(OptionInvalid, match="precision"):
        build_engines(folder, TARGET, ["128@2"], precision="fp32")  # the bundle has no such graphs
    for name, wrong in (("jobs", {"jobs": 0}), ("parts", {"parts": 0})):
        with pytest.raises(OptionInvalid, match=f"{name}: got 0; allowed: 1 or more"):
            build_engines(folder, TARGET, ["128@2"], **wrong)
    for level in (-1, 6):
        with pytest.raises(OptionInvalid, match=f"level: got {level}; allowed: 0 to 5"):
            build_engines(folder, TARGET, ["128@2"], options=Options(level=level))
    with pytest.raises(OptionInvalid, match="workspace: got 0"):
        build_engines(folder, TARGET, ["128@2"], options=Options(workspace_mib=0))
    with pytest.raises(ProfileInvalid):
        build(folder, "128@0")
    assert not (folder / "engines").exists()
    (folder / "engines").write_text("a file")
    with pytest.raises(OutputError, match="engines"):
        build(folder)


def test_a_flavour_that_is_not_portable_builds_for_the_gpu_at_hand(tmp_path, monkeypatch, in_process):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    gpu = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    folder = write_bundle(tmp_path / "toy")
    infos = build_engines(folder, "tensorrt", ["128@2"])
    assert {info.identity.capabilities for info in infos} == {("9.0",)}
    assert {info.machine.gpu for info in infos} == {"NVIDIA H200"}

    gpu.capability = (8, 9)
    assert set(build(folder, target="tensorrt").values()) == {"built: no plan"}
    gpu.capability = (9, 0)
    assert set(build(folder, target="tensorrt").values()) == {"kept: valid"}
    found = sorted(path.name for path in engines_folder(folder).iterdir())
    assert found == ["tensorrt-10.13.0.35-sm89", "tensorrt-10.13.0.35-sm90"]


def test_external_data_reaches_the_plan_of_a_flavour_that_needs_the_graph_rewritten(tmp_path, monkeypatch, in_process):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("8.6"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    plans = []
    for external in (False, True):
        folder = write_bundle(tmp_path / f"external {external}" / "toy", external=external)
        build(folder, target="tensorrt")
        plans.append((engines_folder(folder) / "tensorrt-8.6.0-sm90" / "128@2" / "denoiser.plan").read_bytes())
    heads = [plan.partition(b"\n")[0] for plan in plans]
    assert heads[0] == heads[1]
    assert b'"held": ["angle", "wave"]' in heads[1]
    weights = [onnx.load_model_from_string(plan.partition(b"\n")[2]).graph.initializer for plan in plans]
    assert {w.name: to_array(w).tolist() for w in weights[0]} == {w.name: to_array(w).tolist() for w in weights[1]}


def test_one_build_a_core_unless_told_otherwise(tmp_path, monkeypatch, gpu, stub_builds, gate):
    gate(passed)
    folder = write_bundle(tmp_path / "toy")
    monkeypatch.setattr("engine.build.usable_cores", lambda: 2)
    build_engines(folder, "tensorrt", ["128@2"])
    build_engines(folder, "tensorrt", ["64@2"], jobs=3)
    build_engines(folder, "tensorrt", ["256@2"], jobs=30)
    assert stub_builds.asked == [2, 3, 3]
    assert usable_cores() >= 1


def test_the_largest_graph_starts_first(tmp_path, gpu, stub_builds, gate):
    gate(passed)
    folder = write_bundle(tmp_path / "toy")
    infos = build_engines(folder, "tensorrt", ["128@2"])
    assert [info.identity.graph for info in infos] == ["start", "denoiser", "decoder"]
    sizes = [sum(entry.size_bytes for entry in job.files.values()) for job in stub_builds.jobs]
    assert sizes == sorted(sizes, reverse=True)


def test_builds_for_one_gpu_share_a_timing_cache(tmp_path, gpu, stub_builds, gate, rtx, monkeypatch):
    gate(passed)
    monkeypatch.setattr("engine.dialect.Dialect.has_timing_cache", True)
    folder = write_bundle(tmp_path / "toy")
    build_engines(folder, "tensorrt", ["128@2", "64@1"])
    caches = {job.timing_cache for job in stub_builds.jobs}
    expected = engines_folder(folder) / "tensorrt-10.13.0.35-sm90" / "timing-nvidia-h200-cuda13.0.cache"
    assert caches == {str(expected)}
    stub_builds.jobs.clear()
    build_engines(folder, "tensorrt_rtx", ["128@2"])
    assert {job.timing_cache for job in stub_builds.jobs} == {None}


def test_a_gpu_that_takes_no_work_is_a_backend_that_is_unavailable(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda()).fails["cudaSetDevice"] = 46
    with pytest.raises(BackendUnavailable, match="CUDA: got error 46"):
        build_engines(write_bundle(tmp_path / "toy"), "tensorrt", ["128@2"])


@real_rtx
@pytest.mark.slow
def test_every_graph_of_emoji_builds_at_128_and_256(emoji_bundle, tmp_path):
    folder = Path(shutil.copytree(emoji_bundle, tmp_path / "emoji"))
    graphs = {graph.name for graph in load_bundle(folder).graphs("fp16")}
    assert set(build(folder, "128@2", "256@2", target="tensorrt_rtx")) == {
        f"{profile}/{graph}" for profile in ("128@2", "256@2") for graph in graphs
    }
