"""Samples are sorted by the length of their prompts, and what is made of them comes back in their order."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bundle import load_bundle
from runtime.lengths import by_length, in_order
from runtime.text import Tokenizer

BOUNDED = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def test_a_samples_length_is_that_of_its_longest_prompt(bundle_folder):
    tokenizer = Tokenizer(bundle_folder, load_bundle(bundle_folder))
    prompts = [["a"], ["a", "x" * 80], ["y" * 80], ["b", "c"], ["x" * 80, "z" * 160]]
    samples = [SimpleNamespace(prompts=[(text, True) for text in texts]) for texts in prompts]
    assert by_length(samples, tokenizer) == {77: [0, 3], 154: [1, 2], 231: [4]}


@BOUNDED
@given(st.lists(st.integers(1, 4), max_size=20))
def test_in_order_undoes_the_sorting(lengths):
    found: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        found.setdefault(length, []).append(index)
    made = [f"picture {index}" for indices in found.values() for index in indices]
    assert in_order(made, found) == [f"picture {index}" for index in range(len(lengths))]
