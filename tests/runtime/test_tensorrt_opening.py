"""Opening the TensorRT backends: which plans are taken, and every reason why a backend is unavailable."""

from __future__ import annotations

import sys

import pytest

from engine.errors import BackendUnavailable, PlanDamaged
from engine.plan import info_path
from engine.verdict import NOT_YET
from tests import fake_tensorrt
from tests.fake_bench import Bench
from tests.fake_plans import Shelf
from tests.toy_bundle import write_bundle


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return lambda kind="10", *profiles: Bench(monkeypatch, tmp_path, kind, profiles or ("128@2",))


def test_damage_is_found_before_a_plan_is_deserialized(bench):
    made = bench()
    plan = made.plans / "128@2" / "denoiser.plan"
    raw = plan.read_bytes()
    plan.write_bytes(raw[:-1] + b"?")
    with pytest.raises(
        BackendUnavailable, match=r"backend tensorrt, bundle 'toy': got .*denoiser\.plan: sha256"
    ) as caught:
        made.open()
    assert isinstance(caught.value.__cause__, PlanDamaged)
    assert caught.value.remedy == caught.value.__cause__.remedy
    assert made.cuda.alive == 0


def test_it_opens_with_the_engines_of_the_default_size_and_no_others(bench):
    backend = bench("10", "64@2", "128@2-4", "dynamic:64-256@1-8").open()
    assert list(backend._engines) == ["128@2-4"]
    backend.close()


def test_where_no_profile_has_the_default_size_the_nearest_is_opened(bench):
    assert list(bench("10", "256@2", "136x64@2", "64@2").open()._engines) == ["136x64@2"]


def test_an_engine_that_does_not_load_makes_the_backend_unavailable(bench):
    made = bench()
    made.module.Runtime.version = "another build of the same version"
    with pytest.raises(BackendUnavailable, match="a plan that does not deserialize"):
        made.open()
    assert made.cuda.alive == 0


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaGetDeviceProperties", "cudaStreamCreate", "cudaMalloc"])
def test_a_gpu_that_fails_makes_the_backend_unavailable(bench, call):
    made = bench()
    made.cuda.fails[call] = 46
    with pytest.raises(BackendUnavailable, match=r"got .*error 46"):
        made.open()
    assert made.cuda.alive == 0


def test_why_it_is_unavailable(bench, monkeypatch):
    made = bench()
    with pytest.raises(BackendUnavailable, match="device 'cpu'"):
        made.open(device="cpu")
    with pytest.raises(BackendUnavailable, match="device 3 of 1 GPUs"):
        made.open(device="cuda:3")
    info_path(made.plans / "128@2" / "start.plan").unlink()
    with pytest.raises(BackendUnavailable, match=r"no plan that may run here.*zturbo build"):
        made.open()
    made.cuda.fails["cudaGetDeviceCount"] = 100
    with pytest.raises(BackendUnavailable, match="no CUDA-capable device"):
        made.open()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match="tensorrt cannot be imported"):
        made.open()


def test_without_plans_the_command_is_named(bench, tmp_path):
    made = bench()
    (made.folder / "engines").rename(tmp_path / "aside")
    with pytest.raises(
        BackendUnavailable,
        match=r"no plans; allowed: plans for tensorrt-10.13.0.35-sm90.*--target tensorrt --profiles 128@2",
    ):
        made.open()


def test_plans_of_another_bundle_version_or_gpu_are_refused(bench):
    made = bench()
    made.cuda.capability = (8, 6)
    with pytest.raises(BackendUnavailable, match=r"plans for tensorrt-10\.13\.0\.35-sm90 only; .*-sm86"):
        made.open()
    made.cuda.capability = (9, 0)
    made.module.__version__ = "10.14.0"
    with pytest.raises(BackendUnavailable, match=r"allowed: plans for tensorrt-10\.14\.0-sm90"):
        made.open()
    made.module.__version__ = fake_tensorrt.VERSIONS["10"]
    write_bundle(made.folder, scale=3.0)
    with pytest.raises(BackendUnavailable, match="bundle it was built for"):
        made.open()


def test_what_is_left_out_and_what_differs_is_said_once(bench):
    made = bench("10", "128@2", "64@1-8")
    info_path(made.plans / "64@1-8" / "start.plan").unlink()
    made.cuda.gpu = "NVIDIA H100"
    with pytest.warns(
        RuntimeWarning, match="left out .*64@1-8.*gpu: built with NVIDIA H200, running with NVIDIA H100"
    ) as caught:
        backend = made.open()
    assert len(caught) == 1
    assert backend.row_counts(64, 64, 77) == [2]


def test_plans_that_were_never_compared_are_told_in_one_line(monkeypatch, tmp_path):
    shelf = Shelf(monkeypatch, write_bundle(tmp_path / "toy"))
    for profile in ("128@2", "64@2"):
        shelf.put(profile, verdict=NOT_YET)
    with pytest.warns(
        RuntimeWarning, match="backend tensorrt: the parity gate has not compared all plans of 128@2, 64@2$"
    ) as caught:
        shelf.open()
    assert len(caught) == 1


def test_a_precision_is_that_of_the_plans_and_fp16_where_there_are_several(monkeypatch, tmp_path):
    shelf = Shelf(monkeypatch, write_bundle(tmp_path / "toy"))
    with pytest.raises(BackendUnavailable, match=r"got no plans; .*--profiles 128@2 --precision bf16`"):
        shelf.open(precision="bf16")
    shelf.put("128@2", precision="bf16")
    assert [shelf.open().precision, shelf.open(precision="bf16").precision] == ["bf16"] * 2
    with pytest.raises(BackendUnavailable, match=r"plans for tensorrt-10\.13\.0\.35-sm90 in bf16 only"):
        shelf.open(precision="fp16")
    shelf.put("128@2")
    assert shelf.open().precision == "fp16"


@pytest.mark.filterwarnings("error")
def test_plans_for_another_gpu_lie_beside_those_for_this_one_and_are_not_told(bench):
    made = bench()
    made.cuda.capability = (8, 9)
    made.build("64@1-8")
    backend = made.open()
    assert backend.row_counts(64, 64, 77) == list(range(1, 9))
    made.cuda.capability = (9, 0)
    assert list(made.open()._engines) == ["128@2"]


def test_renamed_plans_of_another_gpu_are_still_refused(bench):
    made = bench()
    made.plans.rename(made.plans.with_name("tensorrt-10.13.0.35-sm86"))
    made.cuda.capability = (8, 6)
    with pytest.raises(BackendUnavailable, match=r"compute capability it was built for: 9\.0; allowed: 8\.6"):
        made.open()


def test_rtx_refuses_a_gpu_it_does_not_know(bench):
    made = bench("rtx")
    made.cuda.capability = (9, 0)
    with pytest.raises(BackendUnavailable, match=r"compute capability 9\.0; allowed: one of 8\.6, 8\.9, 12\.0"):
        made.open()
