"""The README's examples do what it says."""

from __future__ import annotations

import re

import pytest


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(readme, root, emoji_bundle, monkeypatch, tmp_path, capsys):
    code, with_config = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "trt_models").mkdir()
    (tmp_path / "trt_models" / "emoji").symlink_to(emoji_bundle)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "20 of 20" in capsys.readouterr().out
    assert (tmp_path / "out" / "fox-1.png").stat().st_size > 1000
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "config.yaml").write_bytes((root / "docs" / "config.yaml").read_bytes())
    exec(compile(with_config, "README.md", "exec"), {})
    assert len(list((tmp_path / "out").glob("image-*.png"))) == 4


def test_every_command_has_an_example(readme, root):
    files = (root / "zturbo" / "commands").glob("[a-z]*.py")
    commands = {path.stem.replace("_", "-") for path in files}
    assert commands <= set(re.findall(r"zturbo ([\w-]+)", readme))


def test_every_option_it_names_exists(readme, zturbo):
    for command, rest in re.findall(r"^zturbo ([\w-]+)(.*)$", readme, re.MULTILINE):
        offered = zturbo(command, "--help").stdout
        for option in re.findall(r" (--?[a-z]+)", rest):
            assert option in offered, f"zturbo {command} has no {option}"


def test_every_make_target_it_names_exists(readme, root):
    targets = set(re.findall(r"^([a-z0-9-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    table = readme.partition("| make |")[2].partition("\n\n")[0]
    named = set(re.findall(r"make ([a-z0-9-]+)", readme)) | set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert named <= targets


def test_every_file_it_links_exists(readme, root):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    missing = [link for link in links if not (root / link).exists()]
    assert not missing
