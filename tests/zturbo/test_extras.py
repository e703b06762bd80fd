"""A missing module names an extra that really installs it."""

from __future__ import annotations

import re
import sys

import pytest

from engine.errors import ExtraMissing
from zturbo.extras import EXTRAS, extra

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

DISTRIBUTIONS = {
    "cuda": "cuda-bindings", "flip_evaluator": "flip-evaluator", "skimage": "scikit-image",
    "tensorrt_rtx": "tensorrt-rtx",
}  # fmt: skip
"""Where a module's distribution has another name."""


@pytest.fixture(scope="module")
def offered(root):
    """The distributions of each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {name: {re.split(r"[<>=\[]", line)[0] for line in lines} for name, lines in extras.items()}


@pytest.mark.parametrize("module", EXTRAS)
def test_every_extra_it_names_has_the_module(module, offered):
    for name in EXTRAS[module]:
        wanted = "onnxruntime-gpu" if (module, name) == ("onnxruntime", "gpu") else DISTRIBUTIONS.get(module, module)
        assert wanted in offered[name]


@pytest.mark.parametrize(
    ("missing", "preferred", "named"),
    [
        ("onnxruntime", "export", "cpu"),
        ("torch.nn", "export", "export"),
        ("onnx", "rtx", "rtx"),
        ("onnx", "bench", "export"),
        ("cuda.bindings.runtime", "rtx", "rtx"),
        ("diffusers", "bench", "export"),
        ("psutil", "bench", "bench"),
    ],
)
def test_the_extra_that_has_it_is_named(missing, preferred, named):
    message = rf"zturbo x: got no Python module '{missing}'.*'zturbo\[{named}\]'"
    with pytest.raises(ExtraMissing, match=message), extra(preferred, command="x"):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)


@pytest.mark.parametrize("missing", ["export.bundle", "engine", "matcher", None])
def test_what_no_extra_has_is_a_fault_of_ours(missing):
    with pytest.raises(ModuleNotFoundError), extra("export", command="x"):
        raise ModuleNotFoundError("gone", name=missing)
