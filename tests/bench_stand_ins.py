"""Contenders of the benchmark that paint nothing: they answer at once, or fail in the way that their settings name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from engine.errors import BackendUnavailable


class Stand:
    """settings: `grey` of its pictures, `seconds` it says they took; hang, die, refuse, break: when asked for that."""

    def open(self, *, bundle, size, settings):
        self.settings = settings
        print("a library that prints")
        self._maybe("open")
        return {"device": "cpu", "precision": settings.get("precision", "fp32"), "weights_bytes": 4 * 2**20,
                "clock": "host", "versions": {"stand": "1.0"}}  # fmt: skip

    def paint(self, *, prompt, seed, steps, count, out):
        self._maybe("paint")
        seconds = self.settings.get("seconds", 1.0) * (steps + seed) * count
        if out is not None:
            np.save(out, np.full((count, 16, 16, 3), (self.settings.get("grey", 100) + seed) % 256, np.uint8))
        stages = {"conditioning": 0.1 * seconds, "loop": 0.7 * seconds, "decode": 0.2 * seconds}
        device = {name: 900 * value for name, value in stages.items()} if self.settings.get("device") else {}
        return {"seconds": seconds, "stages": stages, "device_ms": device, "steps_ms": [1.0] * steps}

    def parts(self, *, repeats):
        self._maybe("parts")
        return {"parts": {"denoiser": [10.0] * repeats, "decoder": [20.0] * repeats}, "clock": "host"}

    def busy(self, *, prompt, steps):
        return {"kernels_ms": self.settings.get("kernels_ms")}

    def measure(self, *, device, threads):
        return {"matmul": {"fp32": {"tflops": 0.2, "by": "stand"}}, "copy": {"gb_s": 30.0, "by": "stand"}}

    def environment(self):
        return {"names": dict(os.environ), "version": sys.version_info[:2]}

    def _maybe(self, what):
        if self.settings.get("hang") == what:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(self.settings["pid_file"]).write_text(str(child.pid))
            time.sleep(600)
        if self.settings.get("die") == what:
            print("its last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.settings.get("refuse") == what:
            raise BackendUnavailable("backend stand", actual="no such GPU", allowed="a GPU", remedy="Buy one.")
        if self.settings.get("break") == what:
            raise ValueError("nobody foresaw this")
