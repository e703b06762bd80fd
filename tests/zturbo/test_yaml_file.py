"""YAML of any origin: plain values, or a ConfigInvalid that names file and line; never much time or memory."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import ConfigInvalid
from zturbo.yaml_file import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml

BOUNDED = settings(max_examples=300, derandomize=True, deadline=None, database=None)
PATH = Path("some, where/config.yaml")

GOOD = [
    ("", None), ("# nothing\n", None), ("~", None), ("a:", {"a": None}), ("a: ''", {"a": ""}), ("a: '1'", {"a": "1"}),
    ("a: 010", {"a": 10}), ("a: -7", {"a": -7}), ("a: 1e3", {"a": 1000.0}), ("a: .5", {"a": 0.5}),
    ("a: -.inf", {"a": -math.inf}), ("a: 1:30", {"a": "1:30"}), ("a: 2020-01-01", {"a": "2020-01-01"}),
    ("a: 0x10", {"a": "0x10"}), ("a: 1_000", {"a": "1_000"}), ("a: no", {"a": False}), ("a: Yes", {"a": True}),
    ("a: TRUE", {"a": True}), ("a: yEs", {"a": "yEs"}), ("a: =", {"a": "="}), ("a: &b 1", {"a": 1}),
    ("a: {b: [1, two, ~]}", {"a": {"b": [1, "two", None]}}), ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
    ("'on': 1", {"on": 1}), ("<<: {a: 1}", {"<<": {"a": 1}}), ("a: !!str 1", {"a": "1"}), ("\ufeffa: 1", {"a": 1}),
    ("a: naïve 北京", {"a": "naïve 北京"}), ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), GOOD, ids=[repr(text) for text, _ in GOOD])
def test_plain_values(text, expected, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode())
    found = read_yaml(path)
    assert found == expected
    assert repr(found) == repr(expected)  # 1 is no True, 1.0 is no 1


BAD = {
    "key twice": ("a: 1\nb: 2\na: 3", "line 3: key 'a' for a second time"),
    "key twice, deep": ("a:\n  b: 1\n  b: 2", "line 3: key 'b' for a second time"),
    "alias": ("a: &x 1\nb: *x", "line 2: an alias"),
    "alias of itself": ("&x [*x]", "line 1: an alias"),
    "key that is a number": ("1: 2", "line 1: a key that is no text"),
    "key that is a word for true": ("on: 2", "line 1: a key that is no text"),
    "key that is a list": ("? [1]\n: 2", "line 1: a key that is no text"),
    "Python": ("a: 1\nb: !!python/object/apply:os.system [x]", "line 2: tag"),
    "Python's name": ("!!python/name:os.system", "line 1: tag"),
    "binary": ("a: !!binary aGk=", "line 1: tag"),
    "date": ("a: !!timestamp 2020-01-01", "line 1: tag"),
    "set": ("!!set {a}", "line 1: tag"),
    "own tag": ("a: !mine 1", "line 1: tag"),
    "no int": ("a: !!int cat", "line 1: 'cat', which is no int"),
    "no bool": ("a: !!bool cat", "line 1: 'cat', which is no bool"),
    "no mapping": ("!!map cat", "line 1: no mapping"),
    "no sequence": ("!!seq {a: 1}", "line 1: expected a sequence"),
    "long integer": ("a: " + "9" * 5000, "which is no int"),
    "two documents": ("a: 1\n---\na: 2", "line 2: "),
    "not closed": ("a: [1, 2", "line 1: "),
    "not closed text": ("a: '", "line 1: "),
    "tab": ("a:\n\tb: 1", "line 2: "),
    "NUL": ("a: \0", "#x0000"),
    "no character": ('a: "\\UFFFFFFFF"', "too large"),
    "version": ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "4300 digits"),
}


@pytest.mark.parametrize(("text", "actual"), BAD.values(), ids=BAD)
def test_what_is_refused(text, actual):
    with pytest.raises(ConfigInvalid) as caught:
        parse_yaml(text, PATH)
    assert caught.value.subject == str(PATH)
    assert actual in caught.value.actual
    assert len(str(caught.value)) < 400


def test_depth_is_bounded():
    deep = MAX_DEPTH - 1
    assert parse_yaml("[" * deep + "1" + "]" * deep, PATH)
    for text in ("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH, "[" * 60000, "{a: " * 10000, "- " * 30000):
        with pytest.raises(ConfigInvalid, match="deeper than 16"):
            parse_yaml(text, PATH)


def test_size_is_bounded(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("#" * MAX_BYTES)
    assert read_yaml(path) is None
    with path.open("a") as stream:
        stream.truncate(1 << 40)  # a hole; nobody reads it
    with pytest.raises(ConfigInvalid, match=f"more than {MAX_BYTES} bytes"):
        read_yaml(path)


def test_a_bomb_of_aliases_is_harmless():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 30)]
    begun = time.process_time()
    with pytest.raises(ConfigInvalid, match="line 2: an alias"):
        parse_yaml("\n".join(levels), PATH)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("content", [b"a: \xff", b"\xff\xfea\x00", b"\xed\xa0\x80"])
def test_what_is_not_utf8(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigInvalid, match="allowed: text in UTF-8"):
        read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["missing.yaml", ".", "config.yaml/below", "nul\0", "x" * 300])
def test_what_is_no_file(name, tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(ConfigInvalid) as caught:
        read_yaml(tmp_path / name)
    assert caught.value.subject == str(tmp_path / name)


SNIPPETS = (
    "a",
    ": ",
    "- ",
    "\n",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x ",
    "*x",
    "!!int ",
    "!!map ",
    "? ",
    "|",
    ">",
    "'",
    '"',
)
SNIPPETS += (
    "\\",
    "\\x",
    "%YAML 1",
    "---",
    "...",
    "#",
    "<<",
    "~",
    "1",
    ".",
    "e",
    "\t",
    "\0",
    "\ud800",
    "\U0010ffff",
    "@",
    "`",
)


@BOUNDED
@given(st.text(max_size=60) | st.lists(st.sampled_from(SNIPPETS), max_size=25).map("".join))
@example("a: &x\n  b: *x")
def test_any_text_is_plain_values_or_a_typed_error(text):
    try:
        value = parse_yaml(text, PATH)
    except ConfigInvalid:
        return
    check_plain(value)


def check_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            check_plain(one)
    else:
        assert type(value) in (str, int, float, bool, type(None))
