"""What a result says of the place it was taken at."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

from benchmarks.machine import gpu_facts


def test_onnxruntime_tells_its_own_version_whatever_its_distribution_is_called(monkeypatch):
    """onnxruntime-gpu installs a package onnxruntime, and no distribution of this name."""

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.2.3"))
    assert gpu_facts("onnxruntime")["onnxruntime"] == "1.2.3"
