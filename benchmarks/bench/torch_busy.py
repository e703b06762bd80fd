"""How long the GPU itself was busy while torch worked: the kernels' own times, by torch's profiler.

Events around eager work count the gaps in which the GPU waits for the host; this does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def kernels_ms(work: Callable[[], object]) -> float | None:
    """Milliseconds of all kernels that work launches; None where there is no GPU, or its profiler does not answer."""
    import torch

    if not torch.cuda.is_available():
        return None
    profiler: Any = torch.profiler
    try:
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as found:
            work()
            torch.cuda.synchronize()
        return busy_ms(found.key_averages())
    except RuntimeError:  # CUPTI is not let in everywhere
        return None


def busy_ms(averages: Any) -> float | None:
    """The sum of what each kind of kernel took; None where none was seen."""
    microseconds = sum(float(getattr(one, "self_device_time_total", 0.0)) for one in averages)
    return microseconds / 1e3 or None
