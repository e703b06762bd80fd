"""Bindings: symbols become integers, and nothing else passes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.binding import SYMBOLS, Binding, Graph, resolve_axis

DIMS = {"samples": 2, "rows": 3, "height": 136, "width": 128, "tokens": 77, "draws": 4}
BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)
NOISE = Binding(
    name="noise", dtype="float32", shape=("samples", "draws", 4, "height/8", "width/8"), lifetime="per_sample"
)


def test_a_shape_with_symbols():
    assert NOISE.resolve(DIMS) == (2, 4, 4, 17, 16)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_resolves(symbol):
    assert resolve_axis(symbol, DIMS) == DIMS[symbol]
    assert resolve_axis(f"{symbol}/1", DIMS) == DIMS[symbol]


def test_an_unknown_symbol():
    with pytest.raises(KeyError, match="depth"):
        resolve_axis("depth", DIMS)


def test_a_size_that_does_not_divide():
    with pytest.raises(ValueError, match="height = 136 is not a multiple of 16"):
        resolve_axis("height/16", DIMS)


@BOUNDED
@given(st.sampled_from(SYMBOLS), st.integers(1, 10**6), st.integers(1, 64))
def test_division_is_exact_or_refused(symbol, value, divisor):
    if value % divisor:
        with pytest.raises(ValueError, match="is not a multiple of"):
            resolve_axis(f"{symbol}/{divisor}", {symbol: value})
    else:
        assert resolve_axis(f"{symbol}/{divisor}", {symbol: value}) * divisor == value


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"}, {"dtype": "bool"}, {"lifetime": "forever"}, {"name": 7}, {"extra": 1}, {"shape": "rows"},
        {"shape": [1.5]}, {"shape": [None]},
    ],
)  # fmt: skip
def test_bindings_are_read_strictly(change):
    good = msgspec.to_builtins(NOISE)
    assert msgspec.convert(good, Binding) == NOISE
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **change}, Binding)


@pytest.mark.parametrize("missing", ["name", "dtype", "shape", "lifetime"])
def test_no_key_of_a_binding_may_be_missing(missing):
    with pytest.raises(msgspec.ValidationError, match=missing):
        msgspec.convert({k: v for k, v in msgspec.to_builtins(NOISE).items() if k != missing}, Binding)


def test_a_graphs_bindings_are_its_inputs_then_its_outputs():
    other = msgspec.structs.replace(NOISE, name="latents")
    graph = Graph(name="start", stage="once", file="x", precision="fp32", inputs=(NOISE,), outputs=(other,))
    assert graph.bindings == (NOISE, other)
    assert graph.carried == {}
