"""Builds of a whole bundle: real TensorRT-RTX where it is installed, in processes, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx.numpy_helper import to_array

from engine.build import BuildEvent, build_engines
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, BuildFailed, BundleDamaged, OptionInvalid, OutputError, ProfileInvalid
from engine.machine import usable_cores
from engine.plan import engines_folder, info_path, read_info, verified_plan
from engine.site import site_of
from engine.target import parse_target
from engine.worker import build_plan
from tests import fake_cuda, fake_tensorrt
from tests.toy_bundle import write_bundle

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
TARGET = "tensorrt_rtx:8.6,8.9"


def build(folder: Path, *profiles: str, target: str = TARGET) -> dict[str, str]:
    """{profile/graph: kind, reason} of a build's outcome."""
    events: list[BuildEvent] = []
    infos = build_engines(folder, target, profiles or ("128@2",), jobs=2, on_progress=events.append)
    finished = [event for event in events if event.kind != "started"]
    assert [event.done for event in finished] == list(range(1, len(infos) + 1))
    assert {event.total for event in events} == {len(infos)}
    return {f"{event.profile}/{event.graph}": f"{event.kind}: {event.reason}" for event in finished}


def target_folder(folder: Path) -> Path:
    return engines_folder(folder) / site_of(parse_target(TARGET)).target.folder


def built(job):
    return job, build_plan(job)


@pytest.fixture
def in_process(monkeypatch):
    """Builds run here, and see the fakes."""
    monkeypatch.setattr("engine.build.run_jobs", lambda jobs, *_: map(built, jobs))


@rtx
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

    write_bundle(folder, scale=2.0, steps=50, external=True)
    assert {kind.split(":")[0] for kind in build(folder).values()} == {"renewed"}
    assert set(build(folder, "128@2", "64@1").values()) == {"kept: valid", "built: no plan"}

    (plans / "decoder.plan").write_bytes(b"cut")
    (plans / "start.plan.json").unlink()
    (plans / "start.plan.999.tmp").write_bytes(b"half")
    kinds = build(folder)
    assert kinds["128@2/decoder"].startswith("built: 3 bytes")
    assert kinds["128@2/start"] == "built: no plan"
    assert kinds["128@2/denoiser"] == "kept: valid"
    assert not list(plans.glob("*.tmp"))

    bundle = load_bundle(folder)
    for plan in plans.glob("*.plan"):
        info = read_info(plan, "")
        assert info.identity.bundle_sha256 == bundle.sha256
        assert info.identity.capabilities == ("8.6", "8.9")
        assert info.machine is None
        assert info.verified == ""
        assert verified_plan(plan, info, "")


@rtx
def test_a_graph_that_does_not_parse_fails_with_tensorrts_words_and_leaves_nothing(tmp_path):
    folder = write_bundle(tmp_path / "toy", broken="decoder")
    with pytest.raises(BuildFailed, match=r"graph 'decoder'.*does not parse; .*[Ff]ail"):
        build(folder)
    left = {path.name for path in folder.rglob("*") if "engines" in path.parts and path.is_file()}
    assert not {name for name in left if name.startswith("decoder") or name.endswith(".tmp")}


@rtx
@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.onnx.data"])
def test_a_graph_whose_files_changed_after_export_is_not_built(tmp_path, name):
    folder = write_bundle(tmp_path / "toy", external=True)
    path = folder / "graphs" / name
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(BundleDamaged, match=rf"{name}: got sha256"):
        build(folder)
    assert not (target_folder(folder) / "128@2" / "denoiser.plan").exists()


@rtx
def test_a_killed_build_leaves_no_partial_plan_and_no_lock(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    call = f"build_engines(Path({str(folder)!r}), {TARGET!r}, ['128@2'], jobs=1)"
    code = f"from pathlib import Path; from engine.build import build_engines; {call}"
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root})
    plans = target_folder(folder) / "128@2"
    deadline = time.monotonic() + 30
    while not list(plans.glob("*.plan.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    for path in plans.glob("*.plan.json"):
        plan = path.with_suffix("")
        assert verified_plan(plan, read_info(plan, ""), "")
    kinds = build(folder)
    assert "kept: valid" in kinds.values()
    assert all(info_path(plans / f"{name}.plan").is_file() for name in ("start", "denoiser", "decoder"))


@rtx
def test_a_second_build_of_a_target_does_not_start(tmp_path):
    import filelock

    folder = write_bundle(tmp_path / "toy")
    target = target_folder(folder)
    target.mkdir(parents=True)
    with filelock.FileLock(target / ".lock"), pytest.raises(BuildFailed, match="another build"):
        build(folder)


@rtx
def test_what_is_asked_for_is_checked_before_anything_is_built(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    with pytest.raises(OptionInvalid, match=r"compute capability 9\.0.*8\.9"):
        build(folder, target="tensorrt_rtx:9.0")
    with pytest.raises(OptionInvalid, match="precision"):
        build_engines(folder, TARGET, ["128@2"], precision="fp32")
    with pytest.raises(OptionInvalid, match="jobs"):
        build_engines(folder, TARGET, ["128@2"], jobs=0)
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


def test_one_build_a_core_unless_told_otherwise(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    asked = []
    monkeypatch.setattr("engine.build.run_jobs", lambda jobs, count, _: asked.append(count) or map(built, jobs))
    folder = write_bundle(tmp_path / "toy")
    build_engines(folder, "tensorrt", ["128@2"])
    build_engines(folder, "tensorrt", ["64@2"], jobs=3)
    assert asked == [usable_cores(), 3]


def test_a_gpu_that_takes_no_work_is_a_backend_that_is_unavailable(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda()).fails["cudaSetDevice"] = 46
    with pytest.raises(BackendUnavailable, match="CUDA: got error 46"):
        build_engines(write_bundle(tmp_path / "toy"), "tensorrt", ["128@2"])


@rtx
@pytest.mark.slow
def test_every_graph_of_emoji_builds_at_128_and_256(emoji_bundle, tmp_path):
    folder = Path(shutil.copytree(emoji_bundle, tmp_path / "emoji"))
    graphs = {graph.name for graph in load_bundle(folder).graphs("fp16")}
    assert set(build(folder, "128@2", "256@2", target="tensorrt_rtx")) == {
        f"{profile}/{graph}" for profile in ("128@2", "256@2") for graph in graphs
    }
