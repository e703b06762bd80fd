"""The timing cache's file: shared, replaced at once, and never a reason to fail."""

from __future__ import annotations

import threading

import filelock
import pytest

from engine import timing
from engine.timing import TimingCache
from tests.fake_tensorrt import fake

VERSION = "10.13.0.35"


def config(*timed: str):
    made = fake("10").Builder(None).create_builder_config()
    assert TimingCache(None).attach(made, b"")
    made.timings.timed |= set(timed)
    return made


def test_no_file_is_an_empty_cache_and_no_path_none(tmp_path):
    assert TimingCache(tmp_path / "timing.cache").read() == b""
    assert TimingCache(None).read() is None
    assert TimingCache(tmp_path).read() is None  # a folder in its place


def test_what_was_merged_is_read(tmp_path):
    cache = TimingCache(tmp_path / "new" / "timing.cache")
    cache.merge(config("a"))
    made = config()
    assert cache.attach(made, cache.read())
    assert made.timings.timed == {"a"}


def test_what_others_added_stays(tmp_path):
    path = tmp_path / "timing.cache"
    configs = [config(f"layer {k}") for k in range(8)]
    threads = [threading.Thread(target=TimingCache(path).merge, args=[made]) for made in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text().splitlines() == [VERSION, *(f"layer {k}" for k in range(8))]
    assert {entry.name for entry in tmp_path.iterdir()} <= {"timing.cache", "timing.cache.lock"}


@pytest.mark.parametrize("content", [b"8.6.0\nother", b"\xff\x00 no cache at all"])
def test_what_is_refused_is_a_miss_and_replaced(tmp_path, content):
    path = tmp_path / "timing.cache"
    path.write_bytes(content)
    made = config()
    assert not TimingCache(path).attach(made, content)
    made.timings.timed.add("own")
    TimingCache(path).merge(made)
    assert path.read_text().splitlines() == [VERSION, "own"]


def test_bindings_that_raise_are_a_miss(tmp_path):
    class Raises:
        def create_timing_cache(self, raw):
            raise TypeError("null pointer")

        def get_timing_cache(self):
            raise RuntimeError("none")

    assert not TimingCache(tmp_path / "timing.cache").attach(Raises(), b"any")
    TimingCache(tmp_path / "timing.cache").merge(Raises())
    assert not (tmp_path / "timing.cache").exists()


@pytest.mark.parametrize("empty", [False, True])
def test_after_a_cache_that_made_a_build_fail_the_next_begins_anew(tmp_path, empty):
    """An empty file is what a machine that went down leaves, and is none yet."""
    path = tmp_path / "timing.cache"
    cache = TimingCache(path)
    cache.merge(config("a"))
    cache.forget()
    assert not path.exists()
    if empty:
        path.touch()
    assert cache.read() == b""
    cache.merge(config("b"))
    assert path.read_text().splitlines() == [VERSION, "b"]


def test_who_waits_too_long_goes_without(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LOCK_S", 0.05)
    with filelock.FileLock(tmp_path / "timing.cache.lock"):
        TimingCache(tmp_path / "timing.cache").merge(config("a"))
    assert not (tmp_path / "timing.cache").exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    TimingCache(tmp_path / "file" / "timing.cache").merge(config("a"))
    TimingCache(tmp_path / "file" / "timing.cache").forget()
