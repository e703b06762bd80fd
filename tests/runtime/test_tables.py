"""The solver tables: the archive is checked when the bundle is opened, a scheduler when it is used; late begins are
composed of what is stored, and a padded batch keeps finished samples.
"""

from __future__ import annotations

import io

import numpy as np
import pytest

from engine.bundle import load_bundle
from engine.errors import BundleDamaged, BundleInvalid, RequestInvalid
from engine.tablefile import WARM_COLUMNS, packed
from runtime.tables import Tables
from tests.fake_backend import solver
from tests.fake_bundle import COLUMNS, ETAS, SCHEDULERS, edit, table
from tests.fake_bundle import tables as all_tables

AT = {column: k for k, column in enumerate(COLUMNS)}


@pytest.fixture(scope="module")
def tables(bundle_folder):
    return Tables(bundle_folder, load_bundle(bundle_folder))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_table_is_there(tables, scheduler):
    for steps in range(1, 101):
        one = tables.get(scheduler, steps)
        assert one.name == scheduler
        assert one.evaluations == steps
        assert one.draws == (steps if scheduler == "ancestral" else 1)
        assert np.array_equal(one.rows, table(scheduler, steps))
        assert tables.get(scheduler, steps) is one


@pytest.mark.parametrize("steps", [-1, 0, 101])
def test_steps_outside_the_range(tables, steps):
    with pytest.raises(
        RequestInvalid, match=f"num_inference_steps with scheduler 'euler': got {steps}; allowed: 1 to 100"
    ):
        tables.get("euler", steps)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("EulerScheduler", "euler"), ("Euler", "euler"), ("EULER", "euler"), (" euler ", "euler"),
        ("Euler a", "ancestral"), ("euler  A", "ancestral"), ("dpm++ 2m", "multistep"), ("Multistep", "multistep"),
    ],
)  # fmt: skip
def test_a_scheduler_has_many_names(tables, asked, name):
    assert tables.get(asked, 5) is tables.get(name, 5)


def test_an_unknown_name_tells_those_near_it(tables):
    with pytest.raises(RequestInvalid, match="Did you mean 'Euler a' or 'euler'") as caught:
        tables.get("Euler b", 5)
    assert caught.value.allowed == "ancestral, euler, multistep"
    with pytest.raises(RequestInvalid) as caught:
        tables.get("", 5)
    assert "Did you mean" not in caught.value.remedy


def test_a_refused_name_tells_why(tables):
    with pytest.raises(RequestInvalid, match="'restart', which has no tables: it goes back up in noise"):
        tables.get("restart", 5)


def test_eta(tables):
    assert tables.get("ancestral", 5) is tables.get("ancestral", 5, eta=1.0)
    assert tables.get("ancestral", 5) is not tables.get("ancestral", 5, eta=0.5)
    with pytest.raises(RequestInvalid, match=r"eta with scheduler 'ancestral': got 0\.3; allowed: 1, 0\.5") as caught:
        tables.get("ancestral", 5, eta=0.3)
    assert (
        caught.value.remedy
        == "Run `zturbo export --eta 0.3` for tables of it, unless diffusers cannot run it with this model."
    )
    with pytest.raises(RequestInvalid, match="takes no eta"):
        tables.get("euler", 5, eta=0.0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("begin", [0, 1, 3, 6])
def test_a_loop_from_an_image(tables, scheduler, begin):
    whole = table(scheduler, 7)
    one = tables.get(scheduler, 7, begin=begin, image=True)
    rows = one.rows
    assert one.evaluations == 7 - begin
    start = {column: rows[0, k] for column, k in AT.items() if rows[0, k]}
    known = {"a": whole[begin, AT["u"]], "c": whole[begin, AT["v"]]}
    kept = {column: whole[begin, AT[column]] for column in ("s", "t", "u", "v")}
    assert start == {column: value for column, value in (known | kept).items() if value}
    noisy = rows[1:, AT["c"]] != 0
    assert rows[1:, AT["j"]][noisy].tolist() == list(range(1, noisy.sum() + 1))
    assert one.draws == 1 + noisy.sum()
    at = [k for column, k in AT.items() if column != "j"]
    own = 1 if scheduler == "multistep" and begin else 0
    assert np.array_equal(rows[1 + own :, at], whole[begin + 1 + own :, at])
    if own:
        assert rows[1, AT["b1"]] == 0
        assert rows[1, AT["b0"]] == 0.5
        assert rows[1, AT["t"]] == whole[begin + 1, AT["t"]]


def test_a_late_begin_starts_from_an_image_anyway(tables):
    assert tables.get("euler", 7, begin=2) is tables.get("euler", 7, begin=2, image=True)
    assert tables.get("euler", 7) is not tables.get("euler", 7, image=True)
    assert tables.get("euler", 7).rows[0, AT["a"]] == 0


@pytest.mark.parametrize("begin", [-1, 7, 8])
def test_a_begin_that_leaves_no_step(tables, begin):
    with pytest.raises(RequestInvalid, match=f"strength: got a begin after {begin} of 7 steps; allowed: 0 to 6"):
        tables.get("euler", 7, begin=begin)


def test_padded_rows_keep_a_finished_sample(tables):
    batch = tables.padded([tables.get("ancestral", 3), tables.get("multistep", 100)])
    assert batch.shape == (2, 200, 15)
    assert batch.dtype == np.float32
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 2, 3), (2, 4, 4, 2, 3), (2, 4, 2, 3), (2, 100, 4, 2, 3))
    latents, history, e, noise = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    index = np.arange(2, dtype=np.int32)
    x, _, row, sample, timestep = solver(
        e, latents, history, np.array([4, 101], np.int32), batch, noise, np.ones(2, np.float32), index, index, index,
        noise[:, 1], np.zeros((2, 1, 2, 3), np.float32),
    )  # fmt: skip
    assert np.array_equal(x, latents)
    assert np.array_equal(sample, latents)
    assert timestep.tolist() == [0, 0]
    assert row.tolist() == [5, 102]


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


GOOD = packed(*all_tables())
POOLED = f"pool/{GOOD['euler/columns'][AT['d']]}"
FILES = {
    "empty": b"",
    "text": b"not an archive",
    "an archive's beginning": npz(GOOD)[:5000],
    "one array": npy(table("euler", 3)),
    "no array at all": npz({}),
    "random": np.random.default_rng(0).bytes(4000),
}


def opened(folder, raw):
    (folder / "tables.npz").write_bytes(raw)
    edit(folder, lambda body: None)
    return Tables(folder, load_bundle(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_archive_of_tables(own_bundle, name):
    with pytest.raises(BundleInvalid) as caught:
        opened(own_bundle, FILES[name])
    assert "tables.npz" in caught.value.subject
    assert caught.value.remedy == "Run `zturbo export` again."


ARRAYS = {
    "a pickle": ("euler/rows", np.array([{"a": 1}], object), "ValueError"),
    "counts of another dtype": ("euler/rows", np.ones(100, np.float32), "float32 (100,), expected int32"),
    "counts in two axes": ("euler/rows", np.ones((10, 10), np.int32), "int32 (10, 10), expected int32 and one axis"),
    "a negative count": ("euler/rows", np.full(100, -1, np.int32), "ValueError"),
    "counts that are too few": ("euler/rows", np.ones(1, np.int32), "uint8 (4, 5150), expected uint8 (4, 1)"),
    "no columns": ("euler/columns", None, "KeyError"),
    "a column less": ("euler/columns", np.full(14, -1, np.int32), "14 columns, expected 15"),
    "a column that is not there": ("euler/columns", np.full(15, 999, np.int32), "KeyError"),
    "a column of another length": (POOLED, np.zeros((4, 7), np.uint8), "uint8 (4, 7), expected uint8"),
    "a column of another dtype": (POOLED, np.zeros((4, 5150), np.int8), "int8 (4, 5150), expected uint8"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_as_export_wrote_it(own_bundle, name):
    key, array, found = ARRAYS[name]
    arrays = {k: v for k, v in {**GOOD, key: array}.items() if v is not None}
    tables = opened(own_bundle, npz(arrays))
    assert tables.get("multistep", 5).evaluations == 5  # the other schedulers are as they were
    with pytest.raises(BundleInvalid) as caught:
        tables.get("euler", 5)
    assert caught.value.subject.endswith("tables.npz, 'euler'")
    assert found in caught.value.actual


def test_another_number_of_tables_than_bundle_json_says(own_bundle):
    arrays = packed({**all_tables()[0], "euler": [table("euler", 3)]}, all_tables()[1])
    with pytest.raises(BundleInvalid, match="'euler': got 1 tables; allowed: 100 tables"):
        opened(own_bundle, npz(arrays)).get("euler", 1)


def spoiled(rows, column, value):
    return np.where(np.arange(len(COLUMNS)) == AT[column], np.float32(value), rows).astype(np.float32)


EULER = table("euler", 7)
TABLES = {
    "no rows": (EULER[:0], "0 rows that no loop can run"),
    "only the start": (EULER[:1], "1 rows that no loop can run"),
    "too long": (np.repeat(EULER, 26, 0), "208 rows that no loop can run"),
    "not finite": (spoiled(EULER, "d", np.nan), "8 rows that no loop can run"),
    "a draw below 0": (spoiled(EULER, "j", -1), "8 rows that no loop can run"),
    "a draw too many": (spoiled(EULER, "j", 1e9), "8 rows that no loop can run"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_run(own_bundle, name):
    rows, found = TABLES[name]
    good, warm = all_tables()
    tables = opened(own_bundle, npz(packed({**good, "euler": [*good["euler"][:6], rows, *good["euler"][7:]]}, warm)))
    assert tables.get("euler", 6).evaluations == 6
    with pytest.raises(BundleInvalid) as caught:
        tables.get("euler", 7)
    assert caught.value.subject.endswith("tables.npz, 'euler/7'")
    assert caught.value.actual == found


LATE = {
    "a row less": (lambda warm: warm[:-1], "5 rows"),
    "not finite": (lambda warm: warm / np.float32(0), "6 rows"),
}


@pytest.mark.parametrize("name", LATE)
def test_late_begins_that_cannot_run(own_bundle, name):
    change, found = LATE[name]
    good, warm = all_tables()
    rows = warm["multistep"]
    with np.errstate(all="ignore"):
        changed = {"multistep": [*rows[:6], change(rows[6]), *rows[7:]]}
    tables = opened(own_bundle, npz(packed(good, changed)))
    assert tables.get("multistep", 7).evaluations == 7
    with pytest.raises(BundleInvalid) as caught:
        tables.get("multistep", 7, begin=2)
    assert caught.value.subject.endswith("tables.npz, 'multistep/7', late begins")
    assert caught.value.actual == found
    assert caught.value.allowed == "6 rows of finite numbers"


@pytest.mark.parametrize("column", ["a", "s", "j", "c"])
def test_a_column_that_the_host_needs(own_bundle, column):
    edit(own_bundle, lambda body: body["tables"].update(columns=[f"new_{c}" if c == column else c for c in COLUMNS]))
    with pytest.raises(BundleInvalid, match=f"'{column}' among them"):
        Tables(own_bundle, load_bundle(own_bundle))


def test_unknown_columns_are_ignored(own_bundle):
    edit(own_bundle, lambda body: body["tables"].update(columns=[*COLUMNS[:3], "d2", *COLUMNS[4:-1], "v2"]))
    tables = Tables(own_bundle, load_bundle(own_bundle))
    assert tables.get("euler", 3).evaluations == 3
    with pytest.raises(BundleInvalid, match="'v' in them"):
        tables.get("euler", 3, begin=1)


def test_its_hash_is_checked_before_it_is_read(own_bundle):
    path = own_bundle / "tables.npz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleDamaged, match="sha256"):
        Tables(own_bundle, load_bundle(own_bundle))


def test_equal_columns_are_stored_once():
    arrays = packed(*all_tables())
    assert len(set(arrays["euler/columns"][[AT["s"], AT["t"]]])) == 2
    assert arrays["euler/columns"][AT["t"]] == arrays["multistep/columns"][AT["t"]]
    assert arrays["euler/columns"][AT["b4"]] == -1
    assert len(arrays["multistep/warm_columns"]) == len(WARM_COLUMNS)
    assert set(ETAS["ancestral"]) == {1.0, 0.5}


def test_composed_tables_are_bounded(tables, monkeypatch):
    monkeypatch.setattr("runtime.tables.KEPT", 5)
    first = tables.get("euler", 1)
    for steps in range(2, 20):
        tables.get("euler", steps)
    assert len(tables._composed) == 5
    assert tables.get("euler", 1) is not first
