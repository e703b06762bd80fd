"""The pytorch backend's own options and failures; no model is loaded (tests/test_parity.py runs one)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from engine.binding import Binding, Graph
from engine.errors import BackendUnavailable, ExecutionFailed, OptionInvalid
from runtime.backends.base import BackendOptions
from runtime.pipeline import Pipeline

torch = pytest.importorskip("torch")

LATENTS = Binding(name="latents", dtype="float32", shape=("samples", 4), lifetime="carried")
NEXT = Binding(name="next_latents", dtype="float32", shape=("samples", 4), lifetime="carried")
GRAPH = Graph(name="solver", stage="loop", file="x", precision="fp32", inputs=(LATENTS,), outputs=(NEXT,))


def bound(module):
    """The launch of a module as GRAPH, and its two buffers."""
    from runtime.backends.pytorch import PytorchBackend

    spec = SimpleNamespace(module=module, inputs=GRAPH.inputs, outputs=GRAPH.outputs)
    backend = PytorchBackend(torch, {"solver": spec}, "cpu", "fp32")
    buffers = {one.name: backend.allocate(one, {"samples": 2}) for one in GRAPH.bindings}
    return backend.bind(GRAPH, buffers, {"samples": 2}), buffers


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "meta", "cpu:0", "cuda:", "cuda:x", "cuda:-1"])
def test_unknown_devices(bundle_folder, device):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, "pytorch", device=device)
    assert (caught.value.subject, caught.value.actual) == ("device", repr(device))
    assert caught.value.allowed == "cpu, cuda, cuda:N"


def test_a_gpu_that_is_not_there(bundle_folder):
    with pytest.raises(BackendUnavailable, match=r"device 'cuda:999' with \d+ usable GPUs"):
        Pipeline.load(bundle_folder, "pytorch", device="cuda:999")


def test_a_source_that_is_not_there(bundle_folder):
    with pytest.raises(BackendUnavailable, match="Export that source again"):
        Pipeline.load(bundle_folder, "pytorch", device="cpu")


def test_a_launch_writes_where_it_was_bound():
    launch, buffers = bound(lambda latents: latents + 1)
    launch()
    assert buffers["next_latents"].read().tolist() == [[1.0] * 4] * 2
    assert not buffers["latents"].read().any()


def test_a_module_that_fails():
    def fail(latents):
        raise RuntimeError("out of memory")

    with pytest.raises(ExecutionFailed, match="pytorch, graph 'solver': got out of memory"):
        bound(fail)[0]()


def test_a_module_runs_whole_whatever_was_hoisted_out_of_its_graph():
    """The rest of the graph reads the prologue's wire; the module reads its own input, and makes the same output."""
    from runtime.backends.pytorch import PytorchBackend

    prompt, wire = (Binding(name=name, dtype="float32", shape=("rows", 4), lifetime="per_row") for name in ("p", "w"))
    prologue = Graph(
        name="prologue", stage="once", file="x", precision="fp32", inputs=(prompt,), outputs=(wire,),
        hoisted_from="solver",
    )  # fmt: skip
    rest = Graph(name="solver", stage="loop", file="x", precision="fp32", inputs=(wire,), outputs=(NEXT,))
    spec = SimpleNamespace(module=lambda prompt: prompt * 2, inputs=(prompt,), outputs=(NEXT,))
    backend = PytorchBackend(torch, {"solver": spec}, "cpu", "fp32", {"w"})
    dims = {"rows": 2, "samples": 2}
    buffers = {one.name: backend.allocate(one, dims) for one in (prompt, wire, NEXT)}
    buffers["p"].write(np.full((2, 4), 3, np.float32))
    for graph in (prologue, rest):
        backend.bind(graph, buffers, dims)()
    assert buffers["next_latents"].read().tolist() == [[6.0] * 4] * 2
    assert buffers["w"].shape == (2, 4)
    assert buffers["w"].save_row(0) is None  # no module wrote it: what is kept of a prompt would be nothing


def test_a_saved_row_is_a_copy():
    buffer = bound(None)[1]["latents"]
    buffer.write(np.arange(8, dtype=np.float32).reshape(2, 4))
    saved = buffer.save_row(1)
    assert saved.size_bytes == 16
    buffer.write(np.zeros((2, 4), np.float32))
    buffer.load_row(0, saved)
    assert buffer.read().tolist() == [[4, 5, 6, 7], [0, 0, 0, 0]]


def test_bf16_is_refused_in_words(bundle_folder):
    from engine.bundle import load_bundle
    from runtime.backends.pytorch import open_backend

    options = BackendOptions(device="cpu", precision="bf16")
    with pytest.raises(BackendUnavailable, match="precision bf16; allowed: fp32, fp16"):
        open_backend(bundle_folder, load_bundle(bundle_folder), options)


def test_captured_launches_run_in_order():
    from runtime.backends.pytorch import PytorchBackend

    done = []
    backend = PytorchBackend(torch, {}, "cpu", "fp32")
    backend.capture([lambda: done.append(1), lambda: done.append(2)])()
    assert done == [1, 2]
    assert backend.captures.captured == 0


def test_a_buffer_takes_its_own_shape_and_dtype_only():
    buffer = bound(None)[1]["latents"]
    for array in (torch.zeros(2, 5).numpy(), torch.zeros(2, 4).double().numpy()):
        with pytest.raises(ValueError, match="written to a buffer of"):
            buffer.write(array)
