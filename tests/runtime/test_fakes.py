"""The fakes are what they stand for: export's wires, and its solver's arithmetic."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.bundle import load_bundle
from tests import fake_backend
from tests.fake_bundle import COLUMNS, ROWS, SCHEDULERS, SIGNATURES, graph, table


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_wires_are_those_that_export_writes(tiny_bundle, precision):
    exported = load_bundle(tiny_bundle)
    assert whole(exported.graphs(precision)) == [graph(name, precision) for name in SIGNATURES]
    assert (exported.tables.columns, exported.tables.rows) == (COLUMNS, ROWS)


def whole(graphs):
    """The graphs before a prologue was hoisted: who reads what it makes reads what it reads."""
    for prologue in [one for one in graphs if one.hoisted_from]:
        made = {binding.name for binding in prologue.outputs}
        for one in graphs:
            if one.name == prologue.hoisted_from:
                kept = [binding for binding in one.inputs if binding.name not in made]
                hoisted = msgspec.structs.replace(one, inputs=(*kept, *prologue.inputs))
        graphs = [hoisted if one.name == prologue.hoisted_from else one for one in graphs if one != prologue]
    return list(graphs)


@pytest.mark.parametrize("name", ["start", "solver"])
def test_start_and_solver_compute_what_the_exported_ones_do(tiny_bundle, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = load_bundle(tiny_bundle)
    description = next(one for one in exported.graphs("fp32") if one.name == name)
    inputs = seeded(description)
    session = onnxruntime.InferenceSession(str(tiny_bundle / description.file), providers=["CPUExecutionProvider"])
    expected = session.run(None, inputs)
    for found, wanted in zip(fake_backend.GRAPHS[name](*inputs.values()), expected, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert np.abs(found - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1)  # float32, another order of sums


def seeded(description):
    """A guided sample and an unguided one: 3 rows, tables of different lengths, mid-way."""
    dims = {"samples": 2, "rows": 3, "height": 128, "width": 136, "tokens": 77, "draws": 6}
    rng = np.random.default_rng(0)
    tables = np.zeros((2, ROWS, len(COLUMNS)), np.float32)
    for k, scheduler in enumerate(list(SCHEDULERS)[1:]):
        tables[k, :7] = table(scheduler, 6)
    known = {
        "table": tables, "row": np.array([2, 5], np.int32), "cond_row": np.array([0, 2], np.int32),
        "uncond_row": np.array([1, 2], np.int32), "sample_of_row": np.array([0, 0, 1], np.int32),
    }  # fmt: skip
    return {
        one.name: known.get(one.name, rng.standard_normal(one.resolve(dims)).astype(one.dtype))
        for one in description.inputs
    }
