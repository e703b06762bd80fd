"""The cache of tables: what is read back, what is a miss, and what an entry's name depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import table_cache
from export.scheduler import make_scheduler
from export.table_cache import Tabled, entry_name, load, save
from tests.export.test_solver import CONFIGS

COLUMNS = 15


def tabled(warm: int = 1) -> Tabled:
    rng = np.random.default_rng(0)
    tables = [[rng.random((n + 1, COLUMNS), np.float32) for n in (2, 3)] for _ in range(2)]
    late = [[rng.random((n, 10), np.float32) for n in (1, 2)] for _ in range(2)] if warm else []
    return Tabled(2, 3, 1, warm, (0.0, 0.3), tables, late)


def name(offer: str = "euler", config: str = "emoji", etas: tuple[float, ...] = (), **settings: Any) -> str:
    return entry_name(make_scheduler(offer, {**CONFIGS[config], **settings}), etas)


@pytest.mark.parametrize("warm", [0, 1])
def test_reads_back_what_it_wrote(tmp_path: Path, warm: int) -> None:
    wanted = tabled(warm)
    save(tmp_path / "folder" / "one.npz", wanted)
    found = load(tmp_path / "folder" / "one.npz")
    assert found is not None
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one.npz"]
    facts = ("min_steps", "max_steps", "order", "warm", "etas")
    assert all(getattr(found, fact) == getattr(wanted, fact) for fact in facts)
    for mine, theirs in ((found.tables, wanted.tables), (found.late, wanted.late)):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("at", [0, 70, 100, 300, -1])
def test_a_changed_byte_is_a_miss(tmp_path: Path, at: int) -> None:
    save(path := tmp_path / "one.npz", tabled())
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert load(path) is None


@pytest.mark.parametrize("length", [0, 64, 65, 500])
def test_a_file_cut_short_is_a_miss(tmp_path: Path, length: int) -> None:
    save(path := tmp_path / "one.npz", tabled())
    path.write_bytes(path.read_bytes()[:length])
    assert load(path) is None
    assert load(tmp_path / "none.npz") is None


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path := tmp_path / "one.npz", tabled())
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("in use")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        save(path, tabled(0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    save(tmp_path / "file" / "one.npz", tabled())
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_name_follows_settings_and_etas() -> None:
    names = [name(), name("heun"), name("euler_karras"), name(beta_end=0.02), name("ddim"), name("ddim", etas=(0.0,))]
    assert len({*names}) == len(names)


def test_a_name_does_not_follow_what_the_class_does_not_read() -> None:
    assert name() == name("euler_trailing") == name(nobody_reads_this=1)
    assert name() != name("euler_linspace")


def test_a_name_follows_the_code_and_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name()
    monkeypatch.setattr(table_cache, "_makers", lambda: ["another diffusers"])
    assert name() != before


def test_what_finds_a_table_is_named() -> None:
    """Each file of export/ that tables.py and solver.py need for finding one."""
    folder = Path(table_cache.__file__).parent
    assert all((folder / f"{one}.py").is_file() for one in table_cache.CODE)
