"""The TensorRT backends against a fake TensorRT of every flavour and a fake GPU: running, and closing."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from engine.errors import ExecutionFailed, PlanMissing, ShapeOutsideProfile
from tests.fake_bench import FLAVOURS, Bench
from tests.features import needs_layer_norm_that_broadcasts
from tests.toy_bundle import GRAPHS

DIMS = {"samples": 1, "rows": 2, "height": 128, "width": 128, "tokens": 77, "draws": 3}


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


@pytest.mark.parametrize("kind", [pytest.param("8.6", marks=needs_layer_norm_that_broadcasts), *list(FLAVOURS)[1:]])
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
    assert (backend.name, backend.device, backend.precision) == ("tensorrt", "NVIDIA H200", "fp16")
    assert backend.row_counts(128, 128, 77) == [2]
    assert backend.row_counts(64, 64, 77) == list(range(1, 9))
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
    chains = backend._engines["128@2"]._chains
    assert {engine.engine.contexts for chain in chains.values() for engine in chain} == {2}


def test_a_shape_outside_names_the_profiles_and_the_command(bench):
    backend = bench("10", "128@2", "64@1-8").open()
    with pytest.raises(
        ShapeOutsideProfile, match=r"128@2, 64@1-8.*zturbo build .*toy --target tensorrt --profiles 256@2"
    ):
        backend.bind(GRAPHS[0], {}, {**DIMS, "height": 256, "width": 256})
    with pytest.raises(ShapeOutsideProfile, match=r"tokens 154; allowed: .*128@2, .*--profiles 128@2t154"):
        backend.bind(GRAPHS[0], {}, {**DIMS, "tokens": 154})


def test_the_closest_profile_is_taken(bench):
    backend = bench("10", "dynamic:64-256@1-8", "128@2").open()
    run(backend, np.zeros((1, 1, 4, 16, 16), np.float32))
    assert list(backend._engines) == ["128@2"]


def test_a_plan_of_another_profile_is_read_when_it_is_needed(bench):
    made = bench("10", "128@2", "64@2")
    backend = made.open()
    (made.plans / "64@2" / "start.plan").unlink()
    with pytest.raises(PlanMissing):
        backend.bind(GRAPHS[0], {}, {**DIMS, "height": 64, "width": 64})


def test_closing_waits_before_it_drops_an_execution_context(bench):
    made = bench()
    backend = made.open()
    buffers = {b.name: backend.allocate(b, DIMS) for b in GRAPHS[0].bindings}
    launch = backend.bind(GRAPHS[0], buffers, DIMS)
    weakref.finalize(launch.contexts[0], made.cuda.calls.append, "context")
    del launch
    made.cuda.calls.clear()
    backend.close()
    assert made.cuda.calls.index("cudaStreamSynchronize") < made.cuda.calls.index("context")
    with pytest.raises(ExecutionFailed, match="use after close"):
        buffers["noise"].read()


def test_a_launch_after_close_is_refused(bench):
    backend = bench().open()
    buffers = {b.name: backend.allocate(b, DIMS) for b in GRAPHS[0].bindings}
    launch = backend.bind(GRAPHS[0], buffers, DIMS)
    backend.close()
    with pytest.raises(ExecutionFailed, match="use after close"):
        launch()


def test_closing_after_a_failed_launch_frees_all_and_tells_the_first_error(bench):
    made = bench()
    backend = made.open()
    made.cuda.fails["cudaStreamSynchronize"] = 700
    with pytest.raises(ExecutionFailed, match="error 700"):
        backend.close()
    assert made.cuda.alive == 0
    backend.close()


def test_a_launch_that_fails_says_which(bench):
    backend = bench().open()
    buffers = {b.name: backend.allocate(b, DIMS) for b in GRAPHS[0].bindings}
    launch = backend.bind(GRAPHS[0], buffers, DIMS)
    launch.contexts[0].refuses = True
    with pytest.raises(ExecutionFailed, match="engine 'start': got execute_async_v3 returned false"):
        launch()


def test_a_tensor_of_another_shape_is_not_bound(bench):
    backend = bench().open()
    buffers = {b.name: backend.allocate(b, {**DIMS, "samples": 2}) for b in GRAPHS[0].bindings}
    small = {**buffers, "latents": backend.allocate(GRAPHS[0].outputs[0], DIMS)}
    with pytest.raises(ExecutionFailed, match="'latents' is float32"):
        backend.bind(GRAPHS[0], small, {**DIMS, "samples": 2})


def test_running_a_plan_needs_neither_onnx_nor_torch(root):
    code = "import sys, runtime.backends.tensorrt_rtx, engine.build; print(*sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"onnx", "torch", "tensorrt", "tensorrt_rtx", "cuda"} & set(found.stdout.split())
