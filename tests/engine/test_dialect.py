"""The dialect: each flavour's names through one interface, and those names in one file."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import pytest

from engine.dialect import FLAVOURS, Dialect, Flavour, Log, load_dialect
from engine.errors import BackendUnavailable
from tests.fake_tensorrt import fake

VARYING = {
    "EXPLICIT_BATCH", "STRONGLY_TYPED", "FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS",
    "PROFILE_SHARING_0806", "PreviewFeature", "ComputeCapability", "OnnxParserFlag", "NetworkDefinitionCreationFlag",
    "ExecutionContextAllocationStrategy", "USER_MANAGED", "create_runtime_config", "create_execution_context",
    "create_execution_context_without_device_memory", "set_device_memory", "device_memory", "device_memory_size",
    "device_memory_size_v2", "set_compute_capability", "num_compute_capabilities", "set_preview_feature",
}  # fmt: skip


def dialect(kind: str) -> Dialect:
    return Dialect(FLAVOURS["tensorrt_rtx" if kind == "rtx" else "tensorrt"], fake(kind))


def test_what_varies_between_versions_is_named_in_one_file(root):
    for path in [*(root / "engine").rglob("*.py"), *(root / "runtime").rglob("*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
            names |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
        assert path.name == "dialect.py" or not names & VARYING, path


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


def test_the_logger_keeps_errors_and_warnings():
    found, log = dialect("10"), Log()
    logger, severity = found.logger(log), found.trt.ILogger.Severity
    logger.log(severity.ERROR, " bad\n")
    logger.log(severity.WARNING, "odd")
    logger.log(severity.INFO, "chatter")
    assert (log.errors, log.warnings) == (["bad"], ["odd"])


def test_a_flavour_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'zturbo\[tensorrt\]'"):
        load_dialect("tensorrt")


def test_one_object_adds_a_flavour(monkeypatch):
    made_up = Flavour(name="made_up", title="Made Up", module="made_up_trt", extra="made-up", portable=False)
    monkeypatch.setitem(FLAVOURS, "made_up", made_up)
    module = fake("10")
    monkeypatch.setitem(sys.modules, "made_up_trt", module)
    assert load_dialect("made_up").trt is module


def test_scratch_size_has_two_names():
    assert dialect("8.6").scratch_bytes(SimpleNamespace(device_memory_size=7)) == 7
    assert dialect("11").scratch_bytes(SimpleNamespace(device_memory_size_v2=8)) == 8
