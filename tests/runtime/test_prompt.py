"""The syntax of prompts: what users of AUTOMATIC1111 write, and everything else that can be typed."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.prompt import MAX_WEIGHT, MIN_WEIGHT, Fragment, fragments

BOUNDED = settings(max_examples=300, derandomize=True, deadline=None, database=None)
UP, DOWN = 1.1, 1 / 1.1


def read(text):
    """[(text, weight)], weights rounded, a bar before a piece that begins a chunk."""
    return [(("|" if one.new_chunk else "") + one.text, round(one.weight, 6)) for one in fragments(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", UP)]),
        ("[a] cat", [("a", DOWN), (" cat", 1)]),
        ("a (cat:1.3) here", [("a ", 1), ("cat", 1.3), (" here", 1)]),
        ("(a: 0.5 ) b", [("a", 0.5), (" b", 1)]),
        ("(a:.5)(b:2)(c:-1)(d:+3)", [("a", 0.5), ("b", 2), ("c", -1), ("d", 3)]),
        ("((a))", [("a", UP**2)]),
        ("(((a) b))", [("a", UP**3), (" b", UP**2)]),
        ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
        ("[[a]] ([b])", [("a", DOWN**2), (" b", 1)]),
        ("([a) b]", [("a", 1), (" b", DOWN)]),
        ("(a)(b)", [("ab", UP)]),
        ("()[](:1.5)a", [("a", 1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        (r"(\(a\):1.5)", [("(a)", 1.5)]),
        (r"\\(a)", [("\\", 1), ("a", UP)]),
        (r"C:\temp \x", [(r"C:\temp \x", 1)]),
        ("[a:b:0.5] [c|d] AND e", [("a:b:0.5", DOWN), (" ", 1), ("c|d", DOWN), (" AND e", 1)]),
    ],
)
def test_emphasis(text, expected):
    assert read(text) == [(one, round(weight, 6)) for one, weight in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (cat on a mat", [("a ", 1), ("cat on a mat", UP)]),
        ("a [cat (on", [("a ", 1), ("cat ", DOWN), ("on", 1)]),
        ("a cat) on ] a mat:1.3)", [("a cat) on ] a mat:1.3)", 1)]),
        ("(a] b", [("a] b", UP)]),
        ("[a:1.3) b", [("a:1.3) b", DOWN)]),
        ("(a:1.3", [("a:1.3", UP)]),
    ],
)
def test_brackets_without_a_partner(text, expected):
    """One that is never closed holds to the end; one that closes nothing is text."""
    assert read(text) == [(one, round(weight, 6)) for one, weight in expected]


@pytest.mark.parametrize(
    "number", ["1e999", "1e2", "nan", "inf", "1.2.3", "0x1", "١", "1,5", "--1", "", ".", "9" * 400, "1_0", "½"]
)
def test_what_is_no_plain_decimal_number_is_text(number):
    assert read(f"(a:{number})") == [(f"a:{number}", round(UP, 6))]


def test_weights_have_limits():
    assert read("(a:999999999)(b:-99)(c:10)(d:10.01)") == [("a", 10), ("b", -10), ("cd", 10)]
    assert read("((a:100):0.01)") == [("a", 1)]  # what counts is the product
    deep = "(" * 400 + "a" + ":999999999)" * 300 + ":0)" * 50 + ")" * 50
    assert read(deep) == [("a", 0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [("a", 1), ("|b", 1)]),
        ("a,BREAK\n(b BREAK c)", [("a,", 1), ("|b", UP), ("|c", UP)]),
        ("BREAK a BREAK BREAK b BREAK", [("|a", 1), ("|b", 1)]),
        ("a break Break BREAKS aBREAK BREAK_", [("a break Break BREAKS aBREAK BREAK_", 1)]),
    ],
)
def test_break(text, expected):
    assert read(text) == [(one, round(weight, 6)) for one, weight in expected]


SYNTAX = st.text(st.sampled_from(list("()[]\\:. 01.9ab\n")) | st.characters(codec="utf-8"), max_size=60)
WORDS = st.sampled_from(["BREAK", " BREAK ", "(", ")", "[", "]", ":1.3)", ":1e999)", "\\", "cat ", "é", ":", "9" * 30])


@BOUNDED
@given(SYNTAX | st.lists(WORDS, max_size=30).map("".join))
def test_any_text_is_read_and_its_weights_are_finite(text):
    found = fragments(text)
    for one in found:
        assert one.text
        assert math.isfinite(one.weight)
        assert MIN_WEIGHT <= one.weight <= MAX_WEIGHT
    for before, after in pairwise(found):
        assert after.new_chunk or before.weight != after.weight
    assert sum(len(one.text) for one in found) <= len(text)


@BOUNDED
@given(st.text(max_size=60).filter(lambda text: not set("()[]\\") & set(text) and "BREAK" not in text))
def test_text_without_syntax_comes_back_unchanged(text):
    assert fragments(text) == ([Fragment(text, 1.0)] if text else [])


@BOUNDED
@given(st.text(max_size=60).filter(lambda text: "BREAK" not in text))
def test_escaped_text_comes_back_unchanged(text):
    escaped = "".join("\\" + one if one in "()[]\\" else one for one in text)
    assert fragments(escaped) == ([Fragment(text, 1.0)] if text else [])


@pytest.mark.parametrize("piece", ["(", "[", "(a", "\\", " ", ":", ":1", "(a:1", "BREAK ", ")", ":9.9)", "((a)"])
def test_no_text_of_4000_characters_is_slow(piece):
    text = (piece * 4000)[:4000]
    begun = time.process_time()
    fragments(text)
    assert time.process_time() - begun < 0.5
