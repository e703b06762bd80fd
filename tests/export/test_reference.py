"""What graphs are recorded with: token weights of chunks, of padded captions, and of captions with a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.binding import Binding
from engine.errors import OptionInvalid
from export import reference
from export.families import Model, ModelOptions, open_model
from export.loop import host_inputs
from export.solver import COLUMNS

WEIGHTS = Binding(name="token_weights", dtype="float32", shape=("rows", "tokens"), lifetime="per_row")
DIMS = {"rows": 400, "samples": 200, "height": 64, "width": 64, "draws": 1, "tokens": 96}


@pytest.fixture(scope="module")
def model(tiny_source: Path) -> Model:
    return open_model(tiny_source)


def seeded(model: Model) -> np.ndarray:
    return reference.seeded_inputs([WEIGHTS], DIMS, 0, model)["token_weights"]


def looped(model: Model) -> np.ndarray:
    return host_inputs(model, np.zeros((5, len(COLUMNS)), np.float32), DIMS)["token_weights"]


@pytest.mark.parametrize(("weights", "low", "high"), [(seeded, 0.5, 1.5), (looped, 0.8, 1.2)])
def test_weights_of_chunks_are_of_emphasis(model: Model, weights: Callable, low: float, high: float) -> None:
    found = weights(model)
    assert found.dtype == np.float32
    assert low <= found.min() < low + 0.01
    assert high - 0.01 < found.max() <= high


@pytest.mark.parametrize("weights", [seeded, looped])
@pytest.mark.parametrize(("masked", "least"), [(False, 96 - 31), (True, 1)])
def test_weights_of_captions_are_ones_and_then_zeros(model: Model, weights: Callable, masked: bool, least: int) -> None:
    """Without a mask a row's own padded length is the batch's; with one, rows have any length."""
    found = weights(replace(model, multiple=32, masked=masked))
    counts = found.sum(1).astype(int)
    assert np.array_equal(found, np.arange(96) < counts[:, None])
    assert (counts.min(), counts.max()) == (least, 96)


def test_tokens_of_a_templated_models_cases(model: Model) -> None:
    cases = reference.cases(replace(model, multiple=32, max_tokens=512, max_chunks=1))
    assert [dims["tokens"] for dims in cases.values()] == [32, 32, 32, 64]


def test_a_mask_for_a_family_of_chunks_is_refused(tiny_source: Path) -> None:
    with pytest.raises(OptionInvalid, match=r"family 'sd'.*Leave --masked out"):
        open_model(tiny_source, ModelOptions(masked=True))
