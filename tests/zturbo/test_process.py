"""The command as a process of its own, on a real (tiny) bundle: exit codes, streams, bytes that are not UTF-8."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

OPTIONS = ("--steps", "2", "--height", "128", "--width", "136", "--backend", "onnxruntime")


def test_generate_paints(shell, tiny_bundle, tmp_path):
    done = shell("generate", tiny_bundle, "a cat", *OPTIONS, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["metadata"]["num_inference_steps"] == 2
    assert answer["seconds"]["total"] > 0
    with Image.open(tmp_path / answer["paths"][0]) as image:
        assert image.size == (136, 128)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux passes bytes as they are")
def test_a_prompt_that_is_not_utf8(shell, tiny_bundle, tmp_path):
    done = shell("generate", tiny_bundle, b"caf\xe9", *OPTIONS)
    assert done.returncode == 2
    assert done.stderr.startswith(b"RequestInvalid: ")
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_below_a_regular_file(shell, tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = shell("generate", tiny_bundle, "a cat", *OPTIONS, "--out", "file/below")
    assert done.returncode == 2
    assert done.stderr.startswith(b"OutputError: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def interruptible():
    """Processes that are started here hear SIGINT, also where whoever runs the tests ignores it: a job of a script that
    was put in the background does, and what it starts inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_interrupt_in_the_loop(interruptible, tiny_bundle, tmp_path):
    command = [
        sys.executable,
        "-m",
        "zturbo",
        "generate",
        tiny_bundle,
        "a cat",
        "--steps",
        "100",
        "-n",
        "16",
        *OPTIONS[2:],
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"denoising"):
                process.send_signal(signal.SIGINT)
                break
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert not (tmp_path / "out").exists()


def test_help_names_every_command(shell):
    done = shell("--help")
    assert done.returncode == 0
    for command in (b"export", b"build", b"generate", b"inspect", b"doctor", b"demo", b"judge", b"bench"):
        assert command in done.stdout
