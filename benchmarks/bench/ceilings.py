"""What the device can do at most: the fastest product of matrices and the fastest copy that its libraries reach here.

A contender of its own kind in a child process, asked twice in a run: the better of two moments is the ceiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

SIDES = {"cpu": (1024, 2048), "gpu": (4096, 8192)}
COPY_BYTES = {"cpu": 256 * 2**20, "gpu": 2**30}
REPEATS = 7


class Ceilings:
    """Asked for `measure`; what is not installed is left out."""

    def measure(self, *, device: str, threads: int | None = None) -> dict[str, Any]:
        """{`matmul`: {precision: {tflops, by}}, `copy`: {gb_s, by}}; device: `cpu` or `gpu`.

        A copy counts what it reads and what it writes. The values are random: zeros run faster on a GPU.
        """
        found: dict[str, Any] = {"matmul": {}, "copy": {}}
        for measure in (by_torch, by_onnxruntime):
            try:
                told = measure(device, threads)
            except ImportError:
                continue
            merge(found, told)
        return found


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Keep the better of two measurements, figure by figure."""
    for precision, one in other["matmul"].items():
        if one["tflops"] > into["matmul"].get(precision, {"tflops": 0.0})["tflops"]:
            into["matmul"][precision] = one
    if other["copy"] and other["copy"]["gb_s"] > into["copy"].get("gb_s", 0.0):
        into["copy"] = other["copy"]


def by_torch(device: str, threads: int | None) -> dict[str, Any]:
    """With torch: its own choice of library. On a GPU in fp16, bf16 and fp32 without TF32, timed by events."""
    import torch

    if device == "gpu" and not torch.cuda.is_available():
        return {"matmul": {}, "copy": {}}
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    place = "cuda" if device == "gpu" else "cpu"
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16} if device == "gpu" else {
        "fp32": torch.float32
    }  # fmt: skip
    timed = _cuda_seconds if device == "gpu" else best_seconds
    found: dict[str, Any] = {"matmul": {}, "copy": {}}
    for precision, dtype in types.items():
        rates = []
        for side in SIDES[device]:
            a, b = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
            out = torch.empty(side, side, dtype=dtype, device=place)
            rates.append(2 * side**3 / timed(partial(torch.mm, a, b, out=out)) / 1e12)
        found["matmul"][precision] = {"tflops": max(rates), "by": "torch"}
    source = torch.randn(COPY_BYTES[device] // 4, device=place)
    target = torch.empty_like(source)
    found["copy"] = {"gb_s": 2 * COPY_BYTES[device] / timed(lambda: target.copy_(source)) / 1e9, "by": "torch"}
    return found


def by_onnxruntime(device: str, threads: int | None) -> dict[str, Any]:
    """With ONNX Runtime's product, on the CPU alone: its own kernels are faster than torch's on some."""
    found: dict[str, Any] = {"matmul": {}, "copy": {}}
    if device == "gpu":
        return found
    import onnxruntime as ort
    from onnx import TensorProto, helper

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    rates = []
    for side in SIDES[device]:
        a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        bound = session.io_binding()
        for name in "ab":
            bound.bind_cpu_input(name, rng.standard_normal((side, side)).astype(np.float32))
        bound.bind_ortvalue_output("c", ort.OrtValue.ortvalue_from_numpy(np.zeros((side, side), np.float32)))
        rates.append(2 * side**3 / best_seconds(partial(session.run_with_iobinding, bound)) / 1e12)
    found["matmul"]["fp32"] = {"tflops": max(rates), "by": "onnxruntime"}
    return found


def best_seconds(work: Callable[[], object]) -> float:
    """The fastest of REPEATS runs after one."""
    work()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def _cuda_seconds(work: Callable[[], object]) -> float:
    """The same by the GPU's events, ten in a row each."""
    import torch

    cuda: Any = torch.cuda
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(10):
            work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e4)
    return min(times)
