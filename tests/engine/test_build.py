"""Builds of a whole bundle: real TensorRT-RTX where it is installed, in processes, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.build import BuildEvent, build_engines
from engine.bundle import load_bundle
from engine.errors import BuildFailed, BundleDamaged, OptionInvalid, OutputError, ProfileInvalid
from engine.plan import info_path, read_info, verified_plan
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


@rtx
def test_builds_what_is_missing_or_stale_and_nothing_else(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    assert set(build(folder).values()) == {"built: no plan"}
    assert set(build(folder).values()) == {"kept: valid"}

    write_bundle(folder, scale=2.0)
    kinds = build(folder)
    assert kinds.pop("128@2/denoiser").startswith("built: graph file it was built from: sha256")
    assert set(kinds.values()) == {"renewed: the bundle changed, this graph did not"}

    write_bundle(folder, scale=2.0, steps=50)
    assert {kind.split(":")[0] for kind in build(folder).values()} == {"renewed"}
    assert set(build(folder, "128@2", "64@1").values()) == {"kept: valid", "built: no plan"}

    plans = folder / "engines" / "tensorrt_rtx-8.6-8.9" / "128@2"
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
        assert verified_plan(plan, info, "")


@rtx
def test_a_graph_that_does_not_parse_fails_with_tensorrts_words_and_leaves_nothing(tmp_path):
    folder = write_bundle(tmp_path / "toy", broken="decoder")
    with pytest.raises(BuildFailed, match=r"graph 'decoder'.*does not parse; .*[Ff]ail"):
        build(folder)
    left = {path.name for path in folder.rglob("*") if "engines" in path.parts and path.is_file()}
    assert not {name for name in left if name.startswith("decoder") or name.endswith(".tmp")}


@rtx
def test_a_graph_that_changed_after_export_is_not_built(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    path = folder / "graphs" / "denoiser.onnx"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(BundleDamaged, match=r"denoiser\.onnx"):
        build(folder)


@rtx
def test_a_killed_build_leaves_no_partial_plan_and_no_lock(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    call = f"build_engines(Path({str(folder)!r}), {TARGET!r}, ['128@2'], jobs=1)"
    code = f"from pathlib import Path; from engine.build import build_engines; {call}"
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root})
    plans = folder / "engines" / "tensorrt_rtx-8.6-8.9" / "128@2"
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
    target = folder / "engines" / "tensorrt_rtx-8.6-8.9"
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


def test_a_flavour_that_is_not_portable_builds_for_the_gpu_at_hand(tmp_path, monkeypatch):
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    gpu = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    monkeypatch.setattr("engine.build.run_jobs", lambda jobs, *_: [(job, build_plan(job)) for job in jobs])
    folder = write_bundle(tmp_path / "toy")
    infos = build_engines(folder, "tensorrt", ["128@2"])
    assert {info.identity.capabilities for info in infos} == {("9.0",)}
    assert {info.machine.gpu for info in infos} == {"NVIDIA H200"}

    events: list[BuildEvent] = []
    gpu.capability = (8, 9)
    build_engines(folder, "tensorrt", ["128@2"], on_progress=events.append)
    assert {event.reason for event in events} == {"compute capability it was built for: 9.0, now 8.9"}


@rtx
@pytest.mark.slow
def test_every_graph_of_emoji_builds_at_128_and_256(emoji_bundle, tmp_path):
    folder = Path(shutil.copytree(emoji_bundle, tmp_path / "emoji"))
    graphs = {graph.name for graph in load_bundle(folder).graphs("fp16")}
    assert set(build(folder, "128@2", "256@2", target="tensorrt_rtx")) == {
        f"{profile}/{graph}" for profile in ("128@2", "256@2") for graph in graphs
    }
