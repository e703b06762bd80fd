"""The pytorch backend's own options and failures; no model is loaded (tests/test_parity.py runs one)."""

from __future__ import annotations

import pytest

from engine.binding import Binding, Graph
from engine.errors import BackendUnavailable, ExecutionFailed, OptionInvalid
from runtime.pipeline import Pipeline

torch = pytest.importorskip("torch")

LATENTS = Binding(name="latents", dtype="float32", shape=("samples", 4), lifetime="carried")
NEXT = Binding(name="next_latents", dtype="float32", shape=("samples", 4), lifetime="carried")
GRAPH = Graph(name="solver", stage="loop", file="x", precision="fp32", inputs=(LATENTS,), outputs=(NEXT,))


def bound(module):
    """The launch of a module as GRAPH, and its two buffers."""
    from runtime.backends.pytorch import PytorchBackend

    backend = PytorchBackend(torch, {"solver": module}, "cpu", "fp32")
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


def test_a_buffer_takes_its_own_shape_and_dtype_only():
    buffer = bound(None)[1]["latents"]
    for array in (torch.zeros(2, 5).numpy(), torch.zeros(2, 4).double().numpy()):
        with pytest.raises(ValueError, match="written to a buffer of"):
            buffer.write(array)
