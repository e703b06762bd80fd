"""The solver tables: every one is checked when the bundle is opened, and a padded batch keeps finished samples."""

from __future__ import annotations

import io

import numpy as np
import pytest

from engine.bundle import load_bundle
from engine.errors import BundleDamaged, BundleInvalid, RequestInvalid
from runtime.tables import Tables
from tests.fake_backend import solver
from tests.fake_bundle import COLUMNS, SCHEDULERS, edit, table


@pytest.fixture(scope="module")
def tables(bundle_folder):
    return Tables(bundle_folder, load_bundle(bundle_folder))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_table_is_there(tables, scheduler):
    for steps in range(1, 101):
        one = tables.get(scheduler, steps)
        assert one.evaluations == steps
        assert one.draws == (steps if scheduler == "ancestral" else 1)
        assert np.array_equal(one.rows, table(scheduler, steps))


@pytest.mark.parametrize("steps", [-1, 0, 101])
def test_steps_outside_the_range(tables, steps):
    with pytest.raises(
        RequestInvalid, match=f"num_inference_steps with scheduler 'euler': got {steps}; allowed: 1 to 100"
    ):
        tables.get("euler", steps)


def test_padded_rows_keep_a_finished_sample(tables):
    batch = tables.padded([tables.get("ancestral", 3), tables.get("multistep", 100)])
    assert batch.shape == (2, 200, 13)
    assert batch.dtype == np.float32
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 2, 3), (2, 4, 4, 2, 3), (2, 4, 2, 3), (2, 100, 4, 2, 3))
    latents, history, e, noise = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    index = np.arange(2, dtype=np.int32)
    x, _, row, sample, timestep = solver(
        e, latents, history, np.array([4, 101], np.int32), batch, noise, np.ones(2, np.float32), index, index, index
    )
    assert np.array_equal(x, latents)
    assert np.array_equal(sample, latents)
    assert timestep.tolist() == [0, 0]
    assert row.tolist() == [5, 102]


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


GOOD = {f"{name}/{steps}": table(name, steps) for name in SCHEDULERS for steps in range(1, 101)}
FILES = {
    "empty": b"",
    "text": b"not an archive",
    "an archive's beginning": npz(**GOOD)[:5000],
    "an archive without its beginning": npz(**GOOD)[3000:],
    "one array": npy(table("euler", 3)),
    "a pickle": npz(**{**GOOD, "euler/3": np.array([{"a": 1}], object)}),
    "no array at all": npz(),
    "random": np.random.default_rng(0).bytes(4000),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_archive_of_tables(own_bundle, name):
    (own_bundle / "tables.npz").write_bytes(FILES[name])
    edit(own_bundle, lambda body: None)
    with pytest.raises(BundleInvalid) as caught:
        Tables(own_bundle, load_bundle(own_bundle))
    assert "tables.npz" in caught.value.subject
    assert caught.value.remedy == "Run `zturbo export` again."


def spoiled(rows, column, value):
    return np.where(np.arange(13) == COLUMNS.index(column), np.float32(value), rows).astype(np.float32)


EULER = table("euler", 7)
TABLES = {
    "missing": (None, "nothing"),
    "another dtype": (EULER.astype(np.float64), "float64 (8, 13)"),
    "a column less": (EULER[:, 1:], "float32 (8, 12)"),
    "flat": (EULER.ravel(), "float32 (104,)"),
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
    arrays = {key: value for key, value in {**GOOD, "euler/7": rows}.items() if value is not None}
    (own_bundle / "tables.npz").write_bytes(npz(**arrays))
    edit(own_bundle, lambda body: None)
    with pytest.raises(BundleInvalid) as caught:
        Tables(own_bundle, load_bundle(own_bundle))
    assert caught.value.subject.endswith("tables.npz, 'euler/7'")
    assert caught.value.actual == found


@pytest.mark.parametrize("column", ["a", "s", "j"])
def test_a_column_that_the_host_needs(own_bundle, column):
    edit(own_bundle, lambda body: body["tables"].update(columns=[f"new_{c}" if c == column else c for c in COLUMNS]))
    with pytest.raises(BundleInvalid, match=f"'{column}' among them"):
        Tables(own_bundle, load_bundle(own_bundle))


def test_unknown_columns_are_ignored(own_bundle):
    edit(own_bundle, lambda body: body["tables"].update(columns=[*COLUMNS[:3], "d2", *COLUMNS[4:]]))
    assert Tables(own_bundle, load_bundle(own_bundle)).get("euler", 3).evaluations == 3


def test_its_hash_is_checked_before_it_is_read(own_bundle):
    path = own_bundle / "tables.npz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleDamaged, match="sha256"):
        Tables(own_bundle, load_bundle(own_bundle))
