"""Device memory, events and engines against fakes: what is allocated is freed, what fails says why."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from engine.cuda import Cuda
from engine.device import Device
from engine.errors import BackendUnavailable, ExecutionFailed
from engine.machine import machine_of
from tests import fake_cuda


@pytest.fixture
def cuda(monkeypatch) -> fake_cuda.FakeCuda:
    return fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())


def test_no_gpu_no_module_and_no_such_device_are_told_apart(monkeypatch, cuda):
    with pytest.raises(BackendUnavailable, match="device 1 of 1 GPUs"):
        Cuda(1)
    cuda.fails["cudaGetDeviceCount"] = 100
    with pytest.raises(BackendUnavailable, match="no CUDA-capable device"):
        Cuda()
    cuda.fails["cudaGetDeviceCount"] = 35
    with pytest.raises(BackendUnavailable, match='pip install "cuda-bindings<13"'):
        Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailable, match=r"cannot be imported.*pip install 'zturbo\[rtx\]'"):
        Cuda(extra="rtx")


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaGetDeviceProperties", "cudaDriverGetVersion"])
def test_a_gpu_that_another_process_holds_or_that_does_not_answer_is_unavailable(cuda, call):
    cuda.fails[call] = 46
    with pytest.raises(BackendUnavailable, match="CUDA: got error 46"):
        machine_of(Cuda())


def test_machine(cuda):
    machine = machine_of(Cuda())
    assert (machine.gpu, machine.compute_capability, machine.cuda) == ("NVIDIA H200", "9.0", "13.0")


def test_what_is_written_is_read_back(cuda):
    device = Device(Cuda())
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = device.tensor((4, 3), "float32")
    tensor.write(array.T)
    np.testing.assert_array_equal(tensor.read(), array.T)
    with pytest.raises(ValueError, match=r"float64 \(4, 3\)"):
        tensor.write(array.T.astype(np.float64))


def test_memory_goes_with_its_tensor_and_everything_with_the_device(cuda):
    device = Device(Cuda())
    kept, dropped = device.tensor((2,), "uint8"), device.tensor((2,), "uint8")
    assert len(cuda.memory) == 2
    del dropped
    gc.collect()
    assert len(cuda.memory) == 1
    device.mark()
    device.close()
    device.close()
    assert cuda.alive == 0
    del kept  # its memory is gone already
    gc.collect()


def test_nothing_is_used_after_close(cuda):
    device = Device(Cuda())
    tensor, wait = device.tensor((2,), "uint8"), device.mark()
    device.close()
    for use in (tensor.read, lambda: tensor.write(np.zeros(2, np.uint8)), wait, device.mark, device.synchronize):
        with pytest.raises(ExecutionFailed, match="use after close"):
            use()
    with pytest.raises(ExecutionFailed, match="use after close"):
        device.tensor((2,), "uint8")


def test_all_is_freed_though_the_device_failed_and_the_first_error_is_told(cuda):
    device = Device(Cuda())
    tensors = [device.tensor((2,), "uint8") for _ in range(2)]
    device.mark()
    cuda.fails |= {"cudaStreamSynchronize": 700, "cudaEventDestroy": 701}
    with pytest.raises(ExecutionFailed, match="cudaStreamSynchronize: got error 700"):
        device.close()
    assert not cuda.memory
    assert {"cudaEventDestroy", "cudaStreamDestroy"} <= set(cuda.calls)
    device.close()
    del tensors


def test_events_are_used_again(cuda):
    device = Device(Cuda())
    for _ in range(5):
        wait = device.mark()
        wait()
        wait()
    assert len(cuda.handles) == 2  # the stream and one event


def test_out_of_memory_says_so(cuda):
    device = Device(Cuda())
    cuda.fails["cudaMalloc"] = fake_cuda.OUT_OF_MEMORY
    with pytest.raises(ExecutionFailed, match="cudaMalloc: got error 2: out of memory"):
        device.tensor((2,), "uint8")


def test_an_error_that_was_told_is_not_told_again_to_another(cuda):
    device = Device(Cuda())
    cuda.fails["cudaMalloc"] = fake_cuda.OUT_OF_MEMORY
    with pytest.raises(ExecutionFailed):
        device.tensor((2,), "uint8")
    assert cuda.cudaGetLastError() == (0,)


def test_two_gpus_in_one_thread_keep_their_own(monkeypatch):
    """CUDA's current GPU is the thread's, whatever an object thinks; what is freed leaves the thread where it was."""
    cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(count=2))
    first, second = Cuda(0), Cuda(1)
    devices = [Device(first), Device(second)]
    assert [cuda.placed[device.stream] for device in devices] == [0, 1]
    tensors = [device.tensor((2,), "uint8") for device in devices]
    again = devices[0].tensor((2,), "uint8")
    assert [cuda.placed[tensor.address] for tensor in (*tensors, again)] == [0, 1, 0]
    second.use()
    del again
    gc.collect()
    assert cuda.cudaGetDevice() == (0, 1)


def test_rows_are_saved_and_loaded_on_the_device(cuda):
    device = Device(Cuda())
    tensor, other = (device.tensor((3, 2, 5), "float16") for _ in range(2))
    array = np.arange(30).reshape(3, 2, 5).astype(np.float16)
    tensor.write(array)
    other.write(np.zeros_like(array))
    cuda.calls.clear()
    saved = tensor.save_row(1)
    tensor.write(np.zeros_like(array))
    other.load_row(2, saved)
    assert saved.size_bytes == 20
    assert "cudaStreamSynchronize" not in cuda.calls
    np.testing.assert_array_equal(other.read(), [0 * array[0], 0 * array[0], array[1]])
    with pytest.raises(IndexError):
        tensor.save_row(3)
    with pytest.raises(ValueError, match="loaded into a row"):
        device.tensor((3, 5), "float16").load_row(0, saved)
