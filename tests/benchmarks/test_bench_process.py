"""A contender's process: answers, time limits, and every way to fail."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import Child, ContenderFailed, environment

STAND = "tests.bench_stand_ins:Stand"


@pytest.fixture
def started(tmp_path):
    children = []

    def start(**settings):
        spec = Spec(
            name="stand", factory=STAND, settings=settings, environment={"OMP_NUM_THREADS": None, "OF_STAND": "7"}
        )
        children.append(Child(spec, tmp_path / "logs" / "stand.log"))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def plan(tmp_path):
    return Plan(bundle=tmp_path, size=None, open_s=20, picture_s=20)


def test_it_answers_and_what_libraries_print_is_no_answer(started, plan, tmp_path):
    child = started(seconds=0.5)
    assert child.open(plan)["precision"] == "fp32"
    assert child.paint(4, 20)["seconds"] == 2.0
    assert child.paint(4, 20, count=3)["seconds"] == 6.0
    assert child.ask("memory", limit_s=20)["peak_bytes"] > 2**20
    names = child.ask("environment", limit_s=20)["names"]
    assert "OMP_NUM_THREADS" not in names
    assert names["OF_STAND"] == "7"
    assert "a library that prints" in (tmp_path / "logs" / "stand.log").read_text()


def test_one_that_hangs_is_killed_with_what_it_started(started, plan, tmp_path):
    child = started(hang="paint", pid_file=str(tmp_path / "pid"))
    child.open(plan)
    begun = time.perf_counter()
    with pytest.raises(ContenderFailed, match=r"no answer to 'paint' within 1.5 s"):
        child.paint(1, 1.5)
    assert time.perf_counter() - begun < 10
    for _ in range(100):
        if not _runs(int((tmp_path / "pid").read_text())):
            return
        time.sleep(0.05)
    pytest.fail("what the hung process started still runs")


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    if status.parent.parent.is_dir():
        return status.exists() and "State:\tZ" not in status.read_text()
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"die": "open"}, r"ended with code 3 \(.*its last words\)"),
        ({"refuse": "open"}, r"BackendUnavailable: no such GPU\. Buy one\."),
        ({"break": "open"}, r"ValueError: nobody foresaw this"),
    ],
)
def test_why_it_failed_is_told_in_a_line(started, plan, settings, told):
    with pytest.raises(ContenderFailed) as failed:
        started(**settings).open(plan)
    assert failed.match("contender stand")
    import re

    assert re.search(told, failed.value.short), failed.value.short


def test_a_module_that_it_lacks_names_the_interpreter(tmp_path):
    with (
        Child(Spec(name="none", factory="tests.nobody:Nobody", settings={}), tmp_path / "log") as child,
        pytest.raises(ContenderFailed, match=r"no Python module 'tests\.nobody'.*--python NAME=PATH"),
    ):
        child.ask("open", limit_s=20)


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(ContenderFailed, match="cannot be started"):
        Child(Spec(name="none", factory=STAND, settings={}, python=str(tmp_path / "python")), tmp_path / "log")


def test_the_checkout_comes_first_on_the_path(monkeypatch, root):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(root)]))
    assert environment({})["PYTHONPATH"].split(os.pathsep) == [str(root), "/elsewhere"]
    assert "PYTHONPATH" not in environment({"PYTHONPATH": None}) or sys.platform


@pytest.mark.parametrize("name", ["child", "by_backend", "facts", "fused", "torch_busy"])
def test_what_an_older_python_runs_is_of_its_grammar(root, name):
    import ast

    text = (root / "benchmarks" / "bench" / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 10))


def test_the_child_of_a_backend_needs_no_torch(root):
    import subprocess

    code = "import benchmarks.bench.child, benchmarks.bench.by_backend, sys; print([n for n in ('torch', 'onnx', 'psutil', 'matplotlib') if n in sys.modules])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
