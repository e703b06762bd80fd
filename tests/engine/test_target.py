"""Target words."""

from __future__ import annotations

import pytest

from engine.errors import OptionInvalid
from engine.target import parse_target, target_from_folder


@pytest.mark.parametrize(
    ("text", "canonical", "folder"),
    [
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt_rtx", "tensorrt_rtx", "tensorrt_rtx"),
        ("tensorrt_rtx:12.0,8.6,8.6", "tensorrt_rtx:8.6,12.0", "tensorrt_rtx-8.6-12.0"),
    ],
)
def test_reads_and_names_a_folder(text, canonical, folder):
    target = parse_target(text)
    assert (str(target), target.folder) == (canonical, folder)
    assert target_from_folder(folder) == target


@pytest.mark.parametrize(
    "text", ["", "cuda", "tensorrt:8.6", "tensorrt_rtx:", "tensorrt_rtx:86", "tensorrt_rtx:8.6,", "../x"]
)
def test_refuses(text):
    with pytest.raises(OptionInvalid, match="target: got"):
        parse_target(text)
