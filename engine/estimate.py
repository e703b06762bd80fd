"""What a build will need, from the size of a graph's weights, its nodes and its profile; every figure was measured.

Does not know what this machine has (engine/preflight.py) nor which plans are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.binding import PlanPrecision
from engine.dialect import Dialect
from engine.job import Job
from engine.schema import FileEntry

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What builds of one kind of TensorRT take.

    seconds_per_node: that computes, one process, one thread; None where the nodes say little.
    """

    host_bytes: int
    host_per_weight: float
    seconds_per_node: float | None


FAST = Rates(host_bytes=GIB, host_per_weight=3.1, seconds_per_node=None)
"""Strongly typed. RTX 1.7: 3.1 times the weights (2.2 where it builds to a stream), a UNet in seconds; 0.51 GB for the
12 MB of emoji's denoiser."""

FAST_BF16 = replace(FAST, host_per_weight=3.7)
"""The weights are written again in another type before TensorRT reads them."""

SLOW = Rates(host_bytes=3 * GIB // 2, host_per_weight=10.0, seconds_per_node=0.5)
"""8.6.0 on Hopper with 16 cores, level 3. A node that computes: 0.30 s (emoji's denoiser), 0.55 s (SD 1.5's UNet, 910 s
whole), 0.8 s (emoji's decoder). About 4 GB a process for a seventh of that UNet's 1.7 GB of weights; SDXL's 5.1 GB in
one piece had taken 47 GB after 19 minutes and were not built."""

GPU_BYTES = GIB // 2
"""A CUDA context, and TensorRT's kernels."""
GPU_PER_WEIGHT = 2.0
"""The weights, and the form of them that a tactic which is being timed wants."""
GPU_PER_PIXEL = 2048
"""Of each row: a decoder's last layers hold 128 channels a pixel in fp32, a few of them at once; a UNet less."""

PLAN_PER_WEIGHT = 1.2
PLAN_BYTES = 12 << 20
"""Kernels, and weights in the forms that they want. RTX 1.7, emoji at 256@2: 11.9 MB of ONNX became 21.4, 2.3 became
9.3, whether for one compute capability or for six."""


UNEVEN = 2
"""Times its even share of the weights that one part of a graph has: of SD 1.5's UNet 2.1 at most (engine/cut.py)."""


def rates(dialect: Dialect, precision: PlanPrecision = "fp16") -> Rates:
    """The rates of a dialect: what chooses the types of layers itself times many kernels for each."""
    if not dialect.strongly_typed:
        return SLOW
    return FAST_BF16 if precision == "bf16" else FAST


def files_bytes(files: Iterable[FileEntry]) -> int:
    """The bytes of a graph's files, which are its weights but for a few."""
    return sum(entry.size_bytes for entry in files)


def weights_bytes(job: Job) -> int:
    """The weights that a job's plan holds, parts of a graph taken as equal: for sums over all of them."""
    return files_bytes(job.files.values()) // job.identity.part[1]


def most_weights_bytes(job: Job) -> int:
    """The weights that a job's plan may hold: a part's are not equal to another's."""
    return min(files_bytes(job.files.values()), UNEVEN * weights_bytes(job))


def host_bytes(kind: Rates, weights: int) -> int:
    """The host memory that one build of so many bytes of weights takes."""
    return int(kind.host_bytes + kind.host_per_weight * weights)


def gpu_bytes(job: Job) -> int:
    """The GPU memory that one build takes where its kernels are timed."""
    pixels = 0
    if job.graph.stage != "once" or job.graph.only_with:
        pixels = max((_pixels(text) for text in job.identity.profiles), default=0)
    return int(GPU_BYTES + GPU_PER_WEIGHT * most_weights_bytes(job) + GPU_PER_PIXEL * pixels)


def plan_bytes(job: Job) -> int:
    """The size of the plan."""
    return int(PLAN_BYTES + PLAN_PER_WEIGHT * weights_bytes(job))


def temporary_bytes(job: Job) -> int:
    """The file that a build writes and removes: bf16 weights, where the graph's lie outside its ONNX file."""
    rewritten = job.identity.precision == "bf16" and job.graph.precision != "fp32" and len(job.files) > 1
    return most_weights_bytes(job) if rewritten else 0


def _pixels(text: str) -> int:
    """Rows × pixels at most of a profile's canonical text. Tokens are left out: of SD 1.5's row at 512², whose pixels
    are given 537 MB here, K, V and scores of 231 tokens would have 27.
    """
    size, _, rest = text.partition("@")
    rows = rest.partition("t")[0]
    if size.startswith("dynamic:"):
        width = height = int(size.rpartition("-")[2])
    else:
        width, height = (int(side) for side in (size if "x" in size else f"{size}x{size}").split("x"))
    return width * height * int(rows.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Pace:
    """A plan's predicted seconds, None where unknown, and those it took, None where it is not finished."""

    predicted: float | None
    taken: float | None = None
    elapsed: float | None = None


def seconds_left(paces: Iterable[Pace], side_by_side: int) -> float | None:
    """Seconds until all is built; None where that is unknown.

    Predictions are scaled by what the finished plans took against theirs; what waits starts in order, as slots free.
    """
    paces = list(paces)
    told = [(pace.taken, pace.predicted) for pace in paces if pace.taken is not None and pace.predicted]
    scale = sum(taken for taken, _ in told) / sum(predicted for _, predicted in told) if told else 1.0
    open_ = [pace for pace in paces if pace.taken is None]
    if any(pace.predicted is None for pace in open_):
        return None
    slots = [0.0] * max(side_by_side, 1)
    for pace in sorted(open_, key=lambda pace: pace.elapsed is None):  # what runs has its slot already
        slot = min(range(len(slots)), key=slots.__getitem__)
        slots[slot] += max((pace.predicted or 0.0) * scale - (pace.elapsed or 0.0), 0.0)
    return max(slots)
