"""What the tests of the command line share: a runner, a bundle without graphs, and a pipeline without a backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.fake_bundle import write_bundle
from tests.zturbo.stand_ins import FakePipeline
from zturbo.cli import app


@pytest.fixture
def zturbo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run the command in this process, from an empty folder; returns typer's result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zturbo"])  # a command that runs another program sets it
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `python -m zturbo` as a process of its own; arguments may be bytes."""

    def run(*arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "zturbo", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)

    return run


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """A bundle with tables and tokenizer; its graphs are a few bytes of nothing."""
    return write_bundle(tmp_path / "trt_models" / "small")


@pytest.fixture
def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> type[FakePipeline]:
    """Pipeline.load answers with a FakePipeline."""
    monkeypatch.setattr("runtime.pipeline.Pipeline", FakePipeline)
    FakePipeline.requests.clear()
    return FakePipeline
