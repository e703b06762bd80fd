"""The dialect: each flavour's names through one interface, and those names in one file."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import pytest

from engine.dialect import FLAVOURS, Dialect, Log, load_dialect
from engine.errors import BackendUnavailable
from tests.fake_tensorrt import fake

VARYING = {
    "EXPLICIT_BATCH", "STRONGLY_TYPED", "FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS",
    "PROFILE_SHARING_0806", "PreviewFeature", "ComputeCapability", "OnnxParserFlag", "NetworkDefinitionCreationFlag",
    "ExecutionContextAllocationStrategy", "USER_MANAGED", "create_runtime_config", "create_execution_context",
    "create_execution_context_without_device_memory", "set_device_memory", "device_memory", "device_memory_size",
    "device_memory_size_v2", "set_compute_capability", "num_compute_capabilities", "set_preview_feature",
    "TF32", "BF16", "ITimingCache", "builder_optimization_level", "max_workspace_size",
    "set_memory_pool_limit", "MemoryPoolType",
}  # fmt: skip
OTHERS = {"safetensors_file.py": {"BF16"}, "safetensors_header.py": {"BF16"}}
"""The same words for something else: a type of the numbers in a .safetensors file."""


def dialect(kind: str) -> Dialect:
    return Dialect(FLAVOURS["tensorrt_rtx" if kind == "rtx" else "tensorrt"], fake(kind))


def test_what_varies_between_versions_is_named_in_one_file(root):
    for path in [*(root / "engine").rglob("*.py"), *(root / "runtime").rglob("*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
            names |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
        assert path.name == "dialect.py" or not names & VARYING - OTHERS.get(path.name, set()), path


def test_importing_it_imports_no_tensorrt():
    assert not {"tensorrt", "tensorrt_rtx"} & set(dir(sys.modules["engine.dialect"]))


@pytest.mark.parametrize(
    ("kind", "strongly", "plugin", "capabilities"),
    [
        ("8.6", False, True, ()), ("10", True, False, ()), ("11", True, False, ()),
        ("rtx", True, False, ("8.6", "8.9", "12.0")),
    ],
)  # fmt: skip
def test_probes(kind, strongly, plugin, capabilities):
    found = dialect(kind)
    assert found.strongly_typed is strongly
    assert found.instance_norm_needs_plugin is plugin
    assert found.compute_capabilities() == capabilities


@pytest.mark.parametrize("kind", ["8.6", "10", "11", "rtx"])
def test_a_network_is_made_with_the_flag_that_the_flavour_has(kind):
    found = dialect(kind)
    assert found.network(found.trt.Builder(found.logger(Log()))) is not None


def test_modes():
    assert [mode.name for mode in dialect("10").modes("fp16")] == ["strongly typed"]
    fp32, fp16 = dialect("8.6").modes("fp32"), dialect("8.6").modes("fp16")
    assert [mode.flags for mode in fp32] == [()]
    assert fp16[0].flags == ("FP16", "OBEY_PRECISION_CONSTRAINTS")
    assert fp16[0].hold_fp32


@pytest.mark.parametrize(
    ("kind", "precisions", "options_matter", "timing_cache"),
    [
        ("8.6", ("fp16", "fp32"), True, True), ("10", ("fp16", "bf16", "fp32"), True, True),
        ("11", ("fp16", "bf16", "fp32"), True, True), ("rtx", ("fp16", "bf16", "fp32"), False, False),
    ],
)  # fmt: skip
def test_what_a_build_may_be_asked_for(kind, precisions, options_matter, timing_cache):
    found = dialect(kind)
    assert found.precisions() == precisions
    assert (found.options_matter, found.has_timing_cache) == (options_matter, timing_cache)


def test_bf16_needs_a_gpu_that_has_it():
    assert "bf16" in dialect("rtx").precisions(("8.0", "12.0"))
    assert "bf16" not in dialect("rtx").precisions(("7.5", "12.0"))


def test_the_logger_keeps_errors_and_warnings_and_passes_the_rest_on():
    heard = []
    found, log = dialect("10"), Log(sink=heard.append)
    logger, severity = found.logger(log), found.trt.ILogger.Severity
    logger.log(severity.ERROR, " bad\n")
    logger.log(severity.WARNING, "odd")
    logger.log(severity.INFO, "chatter")
    assert (log.errors, log.warnings, heard) == (["bad"], ["odd"], ["chatter"])


def test_a_flavour_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'zturbo\[tensorrt\]'"):
        load_dialect("tensorrt")


def test_scratch_size_has_two_names():
    assert dialect("8.6").scratch_bytes(SimpleNamespace(device_memory_size=7)) == 7
    assert dialect("11").scratch_bytes(SimpleNamespace(device_memory_size_v2=8)) == 8
