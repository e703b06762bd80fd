"""Preflight: what builds are predicted to need, against what is free."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from engine.build import BuildEvent, build_engines
from engine.bundle import load_bundle
from engine.errors import BuildFailed
from engine.estimate import (
    FAST,
    FAST_BF16,
    GIB,
    SLOW,
    Pace,
    gpu_bytes,
    host_bytes,
    most_weights_bytes,
    plan_bytes,
    seconds_left,
    weights_bytes,
)
from engine.job import Job
from engine.machine import cgroup_memory, free_memory
from engine.plan import Options
from engine.preflight import Resources, gib, preflight, resources_of
from engine.profiles import parse_profiles
from engine.schema import FileEntry
from engine.site import Site, site_of
from engine.target import parse_target
from engine.wanted import Asked, plan_jobs
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle

MB = 1_000_000


def jobs_of(
    folder: Path, site: Site, weights: dict[str, int], *profiles: str, parts: int = 1, precision="fp16"
) -> list[Job]:
    """Jobs of graphs that have so many bytes of weights."""
    bundle = load_bundle(folder)
    asked = Asked(
        folder=folder, bundle=bundle, site=site, sets=(tuple(parse_profiles(profiles or ("128@2",), bundle)),),
        precision=precision, options=Options(), parts=None, cores=1, memory_bytes=None,
    )  # fmt: skip
    jobs = []
    for graph in (graph for graph in asked.graphs if graph.name in weights):
        entry = FileEntry(size_bytes=weights[graph.name], sha256="0" * 64)
        made = plan_jobs(asked, asked.sets[0], graph, parts)
        jobs += [msgspec.structs.replace(job, files={graph.file: entry}) for job in made]
    return jobs


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "toy")


@pytest.fixture
def site(rtx) -> Site:
    return site_of(parse_target("tensorrt_rtx:8.6"))


def free(host: int | None = 1000 * GIB, gpu: int | None = None, disk: int | None = 1000 * GIB) -> Resources:
    return Resources(host=host, gpu=gpu, disk=disk)


def test_predictions_grow_with_weights_parts_and_profile(folder, site):
    (job,) = jobs_of(folder, site, {"denoiser": 1700 * MB})
    part = jobs_of(folder, site, {"denoiser": 1700 * MB}, parts=7)[3]
    large = jobs_of(folder, site, {"denoiser": 1700 * MB}, "128@2", "dynamic:64-512@1-8")[0]
    assert weights_bytes(part) == weights_bytes(job) // 7
    assert (most_weights_bytes(part), most_weights_bytes(job)) == (2 * (1700 * MB // 7), 1700 * MB)
    assert host_bytes(FAST, 1700 * MB) == pytest.approx(1 * GIB + 3.1 * 1.7e9)
    assert host_bytes(SLOW, weights_bytes(part)) == pytest.approx(4e9, rel=0.05)  # as measured
    assert plan_bytes(job) > weights_bytes(job)
    assert gpu_bytes(large) - gpu_bytes(job) == 2048 * (512 * 512 * 8 - 128 * 128 * 2)
    longer = jobs_of(folder, site, {"denoiser": 1700 * MB}, "128@2", "dynamic:64-512@1-8t77-231")[0]
    assert gpu_bytes(longer) == gpu_bytes(large)
    once = jobs_of(folder, site, {"start": 1700 * MB}, "512@64")[0]
    assert gpu_bytes(once) < gpu_bytes(large)


def test_all_fits(folder, site):
    jobs = jobs_of(folder, site, {"start": MB, "denoiser": 1700 * MB, "decoder": 100 * MB})
    cleared = preflight(jobs, 2, site, free())
    assert (cleared.jobs, cleared.remarks) == (2, ())
    assert preflight(jobs, 16, site, free()).jobs == 3


def test_fewer_side_by_side_where_memory_is_short_and_it_is_said(folder, site):
    jobs = jobs_of(folder, site, {"start": 1000 * MB, "denoiser": 1000 * MB, "decoder": 1000 * MB})
    need = host_bytes(FAST, 1000 * MB)
    cleared = preflight(jobs, 3, site, free(host=2 * need))
    assert cleared.jobs == 2
    assert cleared.remarks == (
        "2 builds side by side, not 3: one needs up to 3.9 GiB of host memory, 7.8 GiB are free",
    )  # fmt: skip
    assert preflight(jobs, 3, site, free(host=3 * need - 1)).jobs == 2
    assert preflight(jobs, 3, site, free(host=3 * need)).jobs == 3
    assert preflight(jobs, 1, site, free(host=need)).remarks == ()


@pytest.mark.parametrize("what", ["host memory", "GPU memory"])
def test_not_even_one_fits(folder, site, what):
    jobs = jobs_of(folder, site, {"start": MB, "denoiser": 1700 * MB})
    short = free(host=5 * GIB) if what == "host memory" else free(gpu=3 * GIB)
    predicted = "5.9" if what == "host memory" else "3.7"
    with pytest.raises(BuildFailed, match=rf"graph 'denoiser', profile 128@2: got {predicted} GiB of {what}") as caught:
        preflight(jobs, 2, site, short)
    assert caught.value.allowed == f"the {'5.0' if what == 'host memory' else '3.0'} GiB that are free"
    assert "--parts" in caught.value.remedy
    assert "smaller profile" in caught.value.remedy


def test_a_disk_that_is_too_small(folder, site):
    jobs = jobs_of(folder, site, {"start": MB, "denoiser": 1700 * MB})
    with pytest.raises(BuildFailed, match=r"2 plans, largest 'denoiser': got 1\.9 GiB of disk"):
        preflight(jobs, 2, site, free(disk=GIB))


def test_sizes_that_differ_are_not_told_as_the_same():
    assert [gib(size) for size in (1000, 96 * MB, 128 * MB, 4 * GIB)] == ["1000 bytes", "92 MiB", "122 MiB", "4.0 GiB"]


def test_bf16_wants_more_memory_and_a_file_for_each_build_that_runs(folder, site):
    """Weights in the ONNX file itself are rewritten without one."""
    jobs = jobs_of(folder, site, {"denoiser": 1700 * MB, "decoder": 1700 * MB}, precision="bf16")
    half = [msgspec.structs.replace(job, files={"a": entry, "b": entry}) for job in jobs
            for entry in [FileEntry(size_bytes=850 * MB, sha256="0" * 64)]]  # fmt: skip
    plans = sum(plan_bytes(job) for job in jobs)
    assert preflight(jobs, 2, site, free(disk=plans)).jobs == 2
    assert preflight(half, 1, site, free(disk=plans + 1700 * MB)).jobs == 1
    with pytest.raises(BuildFailed, match="GiB of disk"):
        preflight(half, 2, site, free(disk=plans + 3400 * MB - 1))
    need = host_bytes(FAST_BF16, 1700 * MB)
    assert need == pytest.approx(GIB + 3.7 * 1.7e9)
    assert preflight(jobs, 2, site, free(host=2 * need - 1)).jobs == 1
    assert preflight(jobs, 2, site, free(host=2 * need)).jobs == 2


def test_what_is_unknown_stops_nothing(folder, site):
    cleared = preflight(jobs_of(folder, site, {"denoiser": MB}), 2, site, free(None, None, None))
    assert cleared.jobs == 1
    assert cleared.remarks == ("host memory is not looked at: psutil is not installed",)


def test_a_build_that_does_not_fit_starts_nothing(folder, rtx, stub_builds, monkeypatch):
    monkeypatch.setattr("engine.preflight.free_memory", lambda: 1000)
    with pytest.raises(BuildFailed, match=r"got [0-9.]+ [GM]iB of host memory predicted; allowed: the 1000 bytes that"):
        build_engines(folder, "tensorrt_rtx:8.6", ["128@2"])
    assert stub_builds.jobs == []
    assert not list(folder.rglob("*.plan*"))


def test_what_a_killed_build_left_is_gone_before_the_disk_is_looked_at(folder, rtx, stub_builds, monkeypatch):
    build_engines(folder, "tensorrt_rtx:8.6", ["128@2"])
    plans = next(folder.glob("engines/*/128@2"))
    (plans / "start.plan.json").unlink()
    left = plans / "denoiser.plan.77.tmp"
    left.write_bytes(b"half")
    seen: list[bool] = []
    monkeypatch.setattr("engine.build.preflight", lambda *given: (seen.append(left.exists()), preflight(*given))[1])
    build_engines(folder, "tensorrt_rtx:8.6", ["128@2"])
    assert seen == [False]


def test_a_build_says_why_fewer_run_side_by_side(folder, gpu, stub_builds, gate):
    gate(passed)
    gpu.free_bytes = 3 * GIB // 2
    events: list[BuildEvent] = []
    build_engines(folder, "tensorrt", ["128@2"], jobs=3, on_progress=events.append)
    assert stub_builds.asked == [2]
    remarks = [str(event) for event in events if event.kind == "remark"]
    assert remarks[-1].startswith("2 builds side by side, not 3: one needs up to 576 MiB of GPU memory")


def test_resources_are_those_of_the_nearest_folder_there_is(tmp_path, site):
    found = resources_of(site, tmp_path / "not" / "made" / "yet")
    assert found.disk == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert found.gpu is None


def test_memory_without_psutil_is_unknown(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    assert free_memory() is None


def test_memory_is_the_least_of_machine_and_control_groups(monkeypatch):
    psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setitem(__import__("sys").modules, "psutil", psutil)
    monkeypatch.setattr("engine.machine.cgroup_memory", lambda: iter([9 * GIB, 5 * GIB]))
    assert free_memory() == 5 * GIB
    monkeypatch.setattr("engine.machine.cgroup_memory", lambda: iter([]))
    assert free_memory() == 8 * GIB


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def test_control_groups_of_the_second_kind(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    write(tmp_path / "fs" / "a", memory_max=1000, memory_current=600, memory_stat="anon 5\ninactive_file 100")
    write(tmp_path / "fs" / "a" / "b", memory_max="max", memory_current=600)
    assert list(cgroup_memory(tmp_path / "fs", own)) == [500]
    assert list(cgroup_memory(tmp_path / "fs", tmp_path / "none")) == []


def test_control_groups_of_the_first_kind(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/job\n3:cpuset:/\nnonsense\n")
    write(tmp_path / "memory" / "job", memory_limit_in_bytes=1000, memory_usage_in_bytes=1200)
    assert list(cgroup_memory(tmp_path, own)) == [0]


def test_time_left_is_scaled_by_what_finished():
    assert seconds_left([Pace(10.0), Pace(20.0)], 1) == 30
    assert seconds_left([Pace(10.0), Pace(20.0)], 2) == 20
    assert seconds_left([Pace(10.0, taken=5.0), Pace(20.0)], 1) == 10
    assert seconds_left([Pace(10.0, elapsed=4.0), Pace(20.0)], 2) == 20
    assert seconds_left([Pace(10.0, elapsed=40.0)], 2) == 0
    assert seconds_left([Pace(10.0), Pace(None)], 2) is None
    assert seconds_left([Pace(None, taken=3.0), Pace(10.0)], 2) == 10
    assert seconds_left([], 2) == 0


def test_what_runs_keeps_its_slot():
    """Two slots, both taken: what waits begins when the first of them is free."""
    assert seconds_left([Pace(30.0), Pace(10.0, elapsed=5.0), Pace(10.0, elapsed=0.0)], 2) == 35
