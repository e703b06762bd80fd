"""Target words."""

from __future__ import annotations

import pytest

from engine.errors import OptionInvalid
from engine.target import Target, parse_target, target_from_folder


@pytest.mark.parametrize(
    ("text", "canonical", "folder"),
    [
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt_rtx", "tensorrt_rtx", "tensorrt_rtx"),
        ("tensorrt_rtx:12.0,8.6,8.6", "tensorrt_rtx:8.6,12.0", "tensorrt_rtx-sm86-sm120"),
    ],
)
def test_reads_what_a_user_asks_for(text, canonical, folder):
    target = parse_target(text)
    assert (str(target), target.folder, target.version) == (canonical, folder, None)


@pytest.mark.parametrize(
    ("target", "asked", "folder"),
    [
        (Target(flavour="tensorrt", version="8.6.0", capabilities=("9.0",)), "tensorrt", "tensorrt-8.6.0-sm90"),
        (Target(flavour="tensorrt_rtx", version="1.7.1.116"), "tensorrt_rtx", "tensorrt_rtx-1.7.1.116"),
        (
            Target(flavour="tensorrt_rtx", version="1.7", capabilities=("8.6", "12.0")),
            "tensorrt_rtx:8.6,12.0", "tensorrt_rtx-1.7-sm86-sm120",
        ),
    ],
)  # fmt: skip
def test_a_folder_names_version_and_compute_capabilities(target, asked, folder):
    assert (str(target), target.folder) == (asked, folder)
    assert target_from_folder(folder) == target
    assert parse_target(str(target)).flavour == target.flavour


@pytest.mark.parametrize(
    ("folder", "version", "capability", "fits"),
    [
        ("tensorrt-8.6.0-sm90", "8.6.0", "9.0", True),
        ("tensorrt-8.6.0-sm90", "8.6.1", "9.0", False),
        ("tensorrt-8.6.0-sm90", "8.6.0", "8.9", False),
        ("tensorrt_rtx-1.7", "1.7", "8.9", True),
        ("tensorrt_rtx-1.7-sm86-sm89", "1.7", "8.9", True),
        ("tensorrt_rtx-1.7-sm86-sm89", "1.7", "12.0", False),
    ],
)
def test_fits(folder, version, capability, fits):
    assert target_from_folder(folder).fits(version, capability) is fits


@pytest.mark.parametrize("version", ["10.0.0b6", "10.0.0-rc/1", "8.6.1+cu12"])
def test_any_version_makes_a_folder_that_windows_takes(version):
    target = Target(flavour="tensorrt", version=version, capabilities=("9.0",))
    assert not set(target.folder) & set('<>:"/\\|?* ')
    assert target_from_folder(target.folder).fits(version, "9.0")


@pytest.mark.parametrize("name", ["", "tensorrt", "tensorrt-sm90", "cuda-1.0-sm90", "tensorrt-8.6-sm9", ".lock"])
def test_other_folders_are_none_of_ours(name):
    with pytest.raises(OptionInvalid, match="folder that build made"):
        target_from_folder(name)


@pytest.mark.parametrize(
    "text", ["", "cuda", "tensorrt:8.6", "tensorrt_rtx:", "tensorrt_rtx:86", "tensorrt_rtx:8.6,", "../x"]
)
def test_refuses(text):
    with pytest.raises(OptionInvalid, match="target: got"):
        parse_target(text)
