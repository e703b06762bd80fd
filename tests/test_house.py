"""The house's rules that no linter holds: where packages resolve, what an import loads, how long a file may be."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

TOP = ("zturbo", "export", "engine", "runtime", "benchmarks")
HEAVY = ("torch", "diffusers", "transformers", "onnx")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def python_files(root):
    return sorted(path for package in TOP for path in (root / package).rglob("*.py"))


def test_pyproject_lists_every_package(root, project):
    folders = {path.parent.relative_to(root).as_posix() for path in python_files(root)}
    assert set(project["tool"]["setuptools"]["packages"]) == {folder.replace("/", ".") for folder in folders}


def test_every_package_resolves_inside_the_checkout(root, project):
    for name in project["tool"]["setuptools"]["packages"]:
        module = importlib.import_module(name)
        assert module.__file__ is not None, f"{name} has no __init__.py"
        assert module.__file__.startswith(str(root)), f"{name} comes from {module.__file__}"


@pytest.mark.parametrize("name", TOP)
def test_top_packages_are_typed(root, name):
    assert (root / name / "py.typed").is_file()


@pytest.mark.parametrize("names", ["Pipeline, Request, Result", "Config, ConfigWarning, Generator, load_config"])
def test_names_are_light(root, names):
    test_imports_are_light(root, f"from zturbo import {names}")


@pytest.mark.parametrize("statement", ["import zturbo, runtime"])
def test_imports_are_light(root, statement):
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PAINT = """
import sys
from zturbo import Pipeline, Request
with Pipeline.load(sys.argv[1], "onnxruntime", threads=1) as pipeline:
    result = pipeline.generate(Request(prompt="a cat", num_inference_steps=1, height=128, width=128))
assert result.save(sys.argv[2])[0].is_file()
print([name for name in sys.argv[3:] if name in sys.modules])
"""


def test_a_picture_is_painted_and_saved_without_a_heavy_library(tiny_bundle, root, tmp_path):
    command = [sys.executable, "-c", PAINT, tiny_bundle, tmp_path, *HEAVY]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_api_is_what_all_says():
    import zturbo

    names = ["Config", "ConfigWarning", "Generator", "Pipeline", "Request", "Result", "ZturboError", "load_config"]
    assert zturbo.__all__ == names
    for name in zturbo.__all__:
        assert getattr(zturbo, name).__name__ == name
        assert name in dir(zturbo)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zturbo.nothing


def test_files_and_functions_stay_short(root):
    long = []
    for path in python_files(root):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE_LINES:
            long.append(f"{path.relative_to(root)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(root)}: {node.name} has {lines} lines")
    assert not long


def test_constraints_pin_a_torch_that_the_extra_allows(root, project):
    pinned = re.search(r"^torch==(\d+)\.(\d+)", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert (int(pinned[1]), int(pinned[2])) >= (2, 11)
    assert "torch>=2.11" in project["project"]["optional-dependencies"]["export"]


def test_no_runtime_dependency_is_heavy_or_exclusive(project):
    names = {re.split(r"[<>=]", requirement)[0] for requirement in project["project"]["dependencies"]}
    assert not names & {*HEAVY, "onnxruntime", "onnxruntime-gpu"}


def test_every_module_says_what_it_owns(root):
    silent = [path for path in python_files(root) if path.read_text(encoding="utf-8").strip()
              and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None]  # fmt: skip
    assert not silent
