"""The GPU's memory as a stand-in for its driver tells it; what a fresh process takes of it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.bench import gpu_memory, solo
from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import ContenderFailed
from benchmarks.bench.torch_busy import busy_ms, kernels_ms

STAND = "tests.bench_stand_ins:Stand"
MIB = 2**20


class Nvml:
    """Two GPUs; the second has less memory. code: what its calls answer."""

    def __init__(self, code=0):
        self.code, self.free_mib, self.asked = code, 1000, []

    def nvmlInit_v2(self):
        return self.code

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.asked.append(index.value)
        return self.code

    def nvmlDeviceGetName(self, handle, text, length):
        text.value = b"A GPU"
        return self.code

    def nvmlSystemGetDriverVersion(self, text, length):
        text.value = b"580.1"
        return self.code

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.free = 2000 * MIB, self.free_mib * MIB
        return self.code


@pytest.fixture
def no_tools(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(
        gpu_memory, "subprocess", SimpleNamespace(run=missing, CalledProcessError=subprocess.CalledProcessError)
    )
    monkeypatch.setattr(ctypes, "CDLL", missing)


def test_the_driver_tells(no_tools, monkeypatch):
    nvml = Nvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    gpu = gpu_memory.first_gpu()
    assert (gpu.name, gpu.driver, gpu.total_bytes, gpu.free()) == ("A GPU", "580.1", 2000 * MIB, 1000 * MIB)
    nvml.free_mib = 700
    assert gpu.free() == 700 * MIB
    assert nvml.asked == [1]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_none(no_tools, monkeypatch, hidden):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpu_memory.first_gpu() is None


def test_without_nvml_nvidia_smi_does(no_tools, monkeypatch):
    answers = {"name,driver_version,memory.total": "A GPU, 580.1, 2000", "memory.free": "900"}

    def run(command, **_):
        return SimpleNamespace(stdout=answers[command[2].partition("=")[2]] + "\n")

    monkeypatch.setattr(gpu_memory.subprocess, "run", run)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu = gpu_memory.first_gpu()
    assert (gpu.name, gpu.total_bytes, gpu.free()) == ("A GPU", 2000 * MIB, 900 * MIB)


def test_no_gpu(no_tools, monkeypatch):
    assert gpu_memory.first_gpu() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(code=9))
    assert gpu_memory.first_gpu() is None


def alone(tmp_path, free, starts=2, **settings):
    plan = Plan(bundle=tmp_path / "bundle", size=None, steps=(4, 2), parts=3, batches=(1, 2), batch_turns=2, pictures=2,
                starts=starts, open_s=20, first_s=20, picture_s=20)  # fmt: skip
    return solo.Alone(Spec(name="a stand", factory=STAND, settings=settings), plan, tmp_path / "source", tmp_path, free)


def test_everything_of_one_contender(tmp_path):
    found = alone(tmp_path, None, seconds=0.5).measure()
    assert (found["starts"], found["second_s"], found["gpu_peak_bytes"]) == (2, 2.0, None)
    assert found["coldest"]["cold_s"] > 0
    assert found["host_peak_bytes"] > MIB
    assert found["parts"]["ms"]["denoiser"]["median"] == 10.0
    assert found["batches"]["by_count"]["2"]["images_per_s"]["median"] == 1.0
    pictures = np.load(found["pictures"]["file"])
    assert pictures.shape == (2, 16, 16, 3)
    assert [int(one.max()) for one in pictures] == [100, 101]


def test_what_it_takes_of_the_gpu_is_the_most_in_between(tmp_path):
    readings = iter([1000, 1000, 600, 800])
    last = [1000]

    def free():
        last[0] = next(readings, last[0])
        return last[0] * MIB

    found = alone(tmp_path, free, starts=1).measure()
    assert found["gpu_peak_bytes"] == 400 * MIB


def test_what_fails_later_is_told_where_it_belongs(tmp_path):
    found = alone(tmp_path, None, starts=1, **{"break": "parts"}).measure()
    assert found["parts"] == {"reason": "ValueError: nobody foresaw this"}
    assert "file" in found["pictures"]
    with pytest.raises(ContenderFailed):
        alone(tmp_path, None, refuse="open").measure()


def test_what_compiles_takes_batches_on_request_alone(tmp_path):
    found = alone(tmp_path, None, starts=1, compile="default").measure()
    assert "--compile-batches" in found["batches"]["by_count"]["2"]["reason"]


def test_files_are_forgotten_without_harm(tmp_path):
    (tmp_path / "weights").write_bytes(b"1" * 5000)
    solo.forget_files([tmp_path, Path("nowhere")])
    assert (tmp_path / "weights").read_bytes() == b"1" * 5000


def test_the_kernels_own_time():
    kernels = [SimpleNamespace(self_device_time_total=1500.0), SimpleNamespace(self_device_time_total=500.0)]
    assert busy_ms([*kernels, SimpleNamespace()]) == 2.0
    assert busy_ms([]) is None
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        assert kernels_ms(lambda: pytest.fail("nothing is to be painted for a GPU that is not there")) is None
