"""The TensorRT backends against a fake TensorRT of every flavour and a fake GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.build import plan_jobs
from engine.bundle import load_bundle
from engine.errors import BackendUnavailable, ExecutionFailed, PlanDamaged, ShapeOutsideProfile
from engine.plan import info_path
from engine.profiles import parse_profiles
from engine.target import parse_target
from engine.worker import build_plan
from runtime.backends import tensorrt, tensorrt_rtx
from runtime.backends.base import BackendOptions
from tests import fake_cuda, fake_tensorrt
from tests.toy_bundle import GRAPHS, write_bundle

DIMS = {"samples": 1, "rows": 2, "height": 128, "width": 128, "tokens": 77, "draws": 3}
FLAVOURS = {"8.6": tensorrt, "10": tensorrt, "11": tensorrt, "rtx": tensorrt_rtx}


class Bench:
    """A flavour, a GPU, and a bundle with plans for them, built in this process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, profiles: tuple[str, ...] = ("128@2",)
    ) -> None:
        self.module = fake_tensorrt.install(monkeypatch, fake_tensorrt.fake(kind))
        self.cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(8, 9) if kind == "rtx" else (9, 0)))
        self.folder, self.backend = write_bundle(folder / "toy"), FLAVOURS[kind]
        self.target = parse_target(self.module.__name__)
        self.build(*profiles)

    def build(self, *profiles: str) -> None:
        bundle = load_bundle(self.folder)
        for job in plan_jobs(self.folder, bundle, self.target, parse_profiles(profiles, bundle), "fp16"):
            build_plan(job)

    def open(self, **options):
        return self.backend.open_backend(self.folder, load_bundle(self.folder), BackendOptions(**options))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return lambda kind="10", *profiles: Bench(monkeypatch, tmp_path, kind, profiles or ("128@2",))


def run(backend, noise):
    """Noise to pixels through the three graphs, each bound twice, as the runtime does it."""
    bindings = {binding.name: binding for graph in GRAPHS for binding in graph.bindings}
    dims = {**DIMS, "samples": noise.shape[0], "rows": 2, "draws": noise.shape[1]}
    buffers = {name: backend.allocate(binding, dims) for name, binding in bindings.items()}
    launches = [backend.bind(graph, buffers, dims) for graph in GRAPHS for _ in range(2)]
    buffers["noise"].write(noise)
    for launch in launches:
        launch()
    backend.mark()()
    return buffers["images"].read()


@pytest.mark.parametrize("kind", list(FLAVOURS))
def test_every_flavour_runs_the_graphs(bench, kind):
    """Against numpy, in bytes: sin(999·2·noise) in fp32, GroupNorm in two groups, one more per channel; ±1 for fp16."""
    backend = bench(kind).open()
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 16, 16)).astype(np.float32)
    wave = np.sin(np.float32(999) * (noise[:, 0] * np.float32(2))).reshape(2, 2, -1)
    normed = (wave - wave.mean(-1, keepdims=True)) / np.sqrt(wave.var(-1, keepdims=True) + 1e-5)
    wanted = np.abs(normed.reshape(2, 4, 16, 16) + np.arange(4).reshape(4, 1, 1)).transpose(0, 2, 3, 1)
    images = run(backend, noise)
    assert images.dtype == np.uint8
    assert np.abs(images.astype(float) - np.floor(wanted)).max() <= 1
    assert (images != np.floor(wanted)).mean() < 0.01
    backend.close()


def test_facts_and_closing(bench):
    made = bench("10", "128@2", "64@1-8")
    backend = made.open()
    assert (backend.name, backend.device, backend.precision, backend.max_rows(128, 128)) == (
        "tensorrt", "NVIDIA H200", "fp16", 2,
    )  # fmt: skip
    assert backend.max_rows(64, 64) == 8
    run(backend, np.zeros((1, 1, 4, 16, 16), np.float32))
    backend.close()
    backend.close()
    gc.collect()
    assert made.cuda.alive == 0


def test_execution_contexts_are_taken_over(bench):
    backend = bench().open()
    for draws in (1, 2, 3):
        run(backend, np.zeros((1, draws, 4, 16, 16), np.float32))
        gc.collect()
    engines = backend._engines["128@2"]._engines
    assert {engine.contexts for engine in engines.values()} == {2}


def test_a_shape_outside_names_the_profiles_and_the_command(bench):
    backend = bench("10", "128@2", "64@1-8").open()
    with pytest.raises(
        ShapeOutsideProfile, match=r'128@2, 64@1-8.*zturbo build ".*toy" --target tensorrt --profiles "256@2"'
    ):
        backend.bind(GRAPHS[0], {}, {**DIMS, "height": 256, "width": 256})


def test_the_closest_profile_is_taken(bench):
    backend = bench("10", "dynamic:64-256@1-8", "128@2").open()
    run(backend, np.zeros((1, 1, 4, 16, 16), np.float32))
    assert list(backend._engines) == ["128@2"]


def test_damage_is_found_before_a_plan_is_deserialized(bench):
    made = bench()
    plan = made.folder / "engines" / "tensorrt" / "128@2" / "denoiser.plan"
    raw = plan.read_bytes()
    plan.write_bytes(raw[:-1] + b"?")
    with pytest.raises(PlanDamaged, match=r"denoiser\.plan"):
        run(made.open(), np.zeros((1, 1, 4, 16, 16), np.float32))


def test_a_launch_that_fails_says_which(bench):
    backend = bench().open()
    buffers = {b.name: backend.allocate(b, DIMS) for b in GRAPHS[0].bindings}
    launch = backend.bind(GRAPHS[0], buffers, DIMS)
    launch._execute.__self__.refuses = True
    with pytest.raises(ExecutionFailed, match="engine 'start': got execute_async_v3 returned false"):
        launch()


def test_a_tensor_of_another_shape_is_not_bound(bench):
    backend = bench().open()
    buffers = {b.name: backend.allocate(b, {**DIMS, "samples": 2}) for b in GRAPHS[0].bindings}
    small = {**buffers, "latents": backend.allocate(GRAPHS[0].outputs[0], DIMS)}
    with pytest.raises(ExecutionFailed, match="'latents' is float32"):
        backend.bind(GRAPHS[0], small, {**DIMS, "samples": 2})


def test_why_it_is_unavailable(bench, monkeypatch):
    made = bench()
    with pytest.raises(BackendUnavailable, match="device 'cpu'"):
        made.open(device="cpu")
    with pytest.raises(BackendUnavailable, match="device 3 of 1 GPUs"):
        made.open(device="cuda:3")
    info_path(made.folder / "engines" / "tensorrt" / "128@2" / "start.plan").unlink()
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
    with pytest.raises(BackendUnavailable, match=r'no plans.*--target tensorrt --profiles "128@2"'):
        made.open()


def test_plans_of_another_bundle_version_or_gpu_are_refused(bench):
    made = bench()
    made.cuda.capability = (8, 6)
    with pytest.raises(BackendUnavailable, match=r"compute capability it was built for: 9\.0; allowed: 8\.6"):
        made.open()
    made.cuda.capability = (9, 0)
    made.module.__version__ = "10.14.0"
    with pytest.raises(BackendUnavailable, match="version of TensorRT"):
        made.open()
    made.module.__version__ = fake_tensorrt.VERSIONS["10"]
    write_bundle(made.folder, scale=3.0)
    with pytest.raises(BackendUnavailable, match="bundle it was built for"):
        made.open()


def test_what_is_left_out_and_what_differs_is_said_once(bench):
    made = bench("10", "128@2", "64@1-8")
    info_path(made.folder / "engines" / "tensorrt" / "64@1-8" / "start.plan").unlink()
    made.cuda.gpu = "NVIDIA H100"
    with pytest.warns(
        RuntimeWarning, match="left out .*64@1-8.*gpu: built with NVIDIA H200, running with NVIDIA H100"
    ) as caught:
        backend = made.open()
    assert len(caught) == 1
    assert backend.max_rows(64, 64) == 2


def test_rtx_refuses_a_gpu_it_does_not_know(bench):
    made = bench("rtx")
    made.cuda.capability = (9, 0)
    with pytest.raises(BackendUnavailable, match=r"compute capability 9\.0; allowed: one of 8\.6, 8\.9, 12\.0"):
        made.open()


def test_running_a_plan_needs_neither_onnx_nor_torch(root):
    code = "import sys, runtime.backends.tensorrt_rtx, engine.build; print(*sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"onnx", "torch", "tensorrt", "tensorrt_rtx", "cuda"} & set(found.stdout.split())
