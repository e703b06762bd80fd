"""Pictures on disk: they carry their request, and each file appears whole or not at all."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import OptionInvalid, OutputError
from runtime.images import Result, contact_sheet, save_png


@pytest.fixture
def result():
    arrays = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    return Result(arrays, {"total": 0.5}, {"prompt": "naïve 北京 🙂 \0", "seed": 2**63 - 1, "guidance_scale": 7.5})


def test_pictures_carry_their_request(result, tmp_path):
    paths = result.save(tmp_path / "a" / "b", stem="cat")
    assert paths == [tmp_path / "a" / "b" / f"cat-{k}.png" for k in range(2)]
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            assert json.loads(image.text["zturbo"]) == {**result.metadata, "image": index}
            assert np.array_equal(np.asarray(image), result.arrays[index])
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["cat-0.png", "cat-1.png"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_them(result, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        paths = [*result.save(tmp_path), tmp_path / "sheet.png"]
        save_png(result.images[0], paths[-1])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in paths} == {mode}


def test_numbers_go_on_and_nothing_is_overwritten(result, tmp_path):
    (tmp_path / "image-7.png").write_text("mine")
    (tmp_path / "image-007.PNG").write_text("another")
    (tmp_path / "other-9.png").write_text("other")
    assert [path.name for path in result.save(tmp_path)] == ["image-8.png", "image-9.png"]
    assert [path.name for path in result.save(str(tmp_path), "other")] == ["other-10.png", "other-11.png"]
    assert (tmp_path / "image-7.png").read_text() == "mine"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_writers_of_one_folder_take_turns_at_names(result, tmp_path, monkeypatch, links):
    """Every writer looks before any writes, so all want the same names."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr("runtime.images._next_number", lambda folder, stem: 0)
    with ThreadPoolExecutor(4) as pool:
        paths = [path for saved in pool.map(lambda _: result.save(tmp_path), range(8)) for path in saved]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert sorted(path.name for path in paths) == sorted(f"image-{k}.png" for k in range(16))
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (24, 16)


def no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("stem", ["", "a/b", "..\\a", "c:a", "nul\0"])
def test_a_stem_is_the_beginning_of_a_file_name(result, tmp_path, stem):
    with pytest.raises(OptionInvalid, match="stem: got"):
        result.save(tmp_path, stem)
    assert not list(tmp_path.iterdir())


def test_a_picture_replaces_the_one_before(result, tmp_path):
    save_png(result.images[0], tmp_path / "x.png")
    save_png(result.images[1], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image), result.arrays[1])
        assert "zturbo" not in image.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_stays_of_a_save_that_failed(result, tmp_path, monkeypatch, error):
    old = result.save(tmp_path)[0].read_bytes()

    def fail(self, stream, **options):
        stream.write(b"half a picture")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image-0.png", "image-1.png"]
    assert (tmp_path / "image-0.png").read_bytes() == old


def refused(result, folder, **options):
    with pytest.raises(OutputError) as caught:
        result.save(folder, **options)
    assert caught.value.subject.startswith(str(folder))
    assert caught.value.allowed == "a place that can be written"
    assert caught.value.remedy == "Choose another folder (`--out` on the command line)."
    return caught.value


@pytest.mark.parametrize("below", [".", "more", "more/deep"])
def test_a_place_below_a_regular_file(result, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    assert refused(result, tmp_path / "file" / below).actual
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_where_the_picture_goes(result, tmp_path):
    (tmp_path / "image-0.png").mkdir()
    with pytest.raises(OutputError, match="image-0"):
        save_png(result.images[0], tmp_path / "image-0.png")
    assert [path.name for path in tmp_path.iterdir()] == ["image-0.png"]
    assert [path.name for path in result.save(tmp_path)] == ["image-1.png", "image-2.png"]


def test_a_name_that_is_too_long(result, tmp_path):
    refused(result, tmp_path, stem="x" * 300)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written(result, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    assert "PermissionError" in refused(result, folder).actual


def test_a_file_system_that_refuses(result, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert refused(result, tmp_path / "new").actual == "PermissionError: Permission denied"


def test_a_sheet_has_every_picture_in_its_place():
    colours = ("red", "lime", "blue")
    sheet = contact_sheet([Image.new("RGB", (20, 10), colour) for colour in colours], colours, columns=2)
    assert sheet.size == (2 * 24, 2 * 32)
    centres = [sheet.getpixel((x, y)) for x, y in ((12, 7), (36, 7), (12, 39), (36, 39))]
    assert centres == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
