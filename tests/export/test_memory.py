"""Memory of an export: weights are there once, whatever their size, while a graph is traced, written and cut in two."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from export import weights
from export.graph import onnx_from_module
from tests.export.test_hollow import spec_of

WHOLE = """
import sys
from pathlib import Path

import numpy as np
import torch

from engine.schema import Latents
from export import weights
from export.families.zimage import denoiser
from export.graph import onnx_from_module
from export.prologue import split_graph
from export.wires import Widths, Wires

source, out = map(Path, sys.argv[1:])
weights.INLINE_BYTES = 1 << 20  # the prologue's leave its file, as they do at the published size
module = denoiser(source, torch.float16).eval()
widths = Widths(hidden=64, captions=True, hollow=("denoiser",))
spec = Wires("fp16", Latents(channels=16, factor=8), widths).spec("denoiser", module)
dims = {"rows": 3, "height": 272, "width": 304, "tokens": 64}
onnx_from_module(spec, {b.name: np.ones(b.resolve(dims), b.dtype) for b in spec.inputs}, out / "denoiser.onnx")
assert len(split_graph(spec.graph("denoiser.onnx"), out)) == 2
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, sum(p.numel() * p.element_size() for p in module.parameters()))
"""
ALLOWED = 1.3
"""Times the weights. At the published size it was 1.03."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_a_transformers_peak_grows_as_its_weights_do(tmp_path: Path, root: Path) -> None:
    """Two sizes of equally many layers, each in a process of its own: what is left apart is the same for both."""
    import torch

    from tests.tiny_zimage import transformer

    found = []
    for dim in (512, 1024):
        place = tmp_path / str(dim)
        torch.manual_seed(0)
        heads, axes = dim // 128, [32, 48, 48]
        model = transformer(dim=dim, n_layers=12, n_heads=heads, n_kv_heads=heads, axes_dims=axes)
        model.half().save_pretrained(place / "transformer")
        (place / "out").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", WHOLE, place, place / "out"], cwd=root, capture_output=True, text=True, check=True
        )
        found.append([int(word) for word in done.stdout.split()])
    (small_peak, small), (large_peak, large) = found
    assert large - small > 250 << 20
    growth = (large_peak - small_peak) / (large - small)
    print(f"{growth:.2f} bytes at the peak for each byte of weights")
    assert growth <= ALLOWED


def test_one_tensor_at_a_time_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MiB of weights, of which numpy never holds more than two layers'."""
    monkeypatch.setattr(weights, "INLINE_BYTES", 100)
    layers = nn.Sequential(nn.Linear(8, 512), *(nn.Linear(512, 512) for _ in range(24)), nn.Linear(512, 16))
    tracemalloc.start()
    try:
        onnx_from_module(
            spec_of(layers, hollow=True), {"latents": np.zeros((3, 2, 8), np.float32)}, tmp_path / "a.onnx"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.onnx.data").stat().st_size > 24 << 20
    assert peak < 4 << 20
