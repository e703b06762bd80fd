"""The error tree: its docstring draws what there is, every message has its parts, and errors cross processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from engine import errors
from engine.errors import InvalidInput, ZturboError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ZturboError)]
PARTS = {"actual": "5 bytes", "allowed": "7 bytes", "remedy": "Run it again."}


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_has_subject_actual_allowed_and_remedy(kind):
    error = kind("bundle.json", **PARTS)
    assert str(error) == "bundle.json: got 5 bytes; allowed: 7 bytes. Run it again."
    assert (error.subject, error.actual, error.allowed, error.remedy) == ("bundle.json", *PARTS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_processes(kind):
    error = kind("naïve {x}", **PARTS)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize("missing", PARTS)
def test_no_part_may_be_left_out(missing):
    with pytest.raises(TypeError, match=missing):
        ZturboError("x", **{name: text for name, text in PARTS.items() if name != missing})


def test_the_docstring_draws_the_tree():
    drawn, above = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│ ├└─]*)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            drawn[match[2]] = above[depth - 1] if depth else None
    built = {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS if kind is not ZturboError}
    assert drawn == {"ZturboError": None, **built}


def test_bad_input_is_also_a_value_error():
    assert {kind.__name__ for kind in KINDS if issubclass(kind, ValueError)} == {
        "InvalidInput", "RequestInvalid", "ProfileInvalid", "OptionInvalid", "LoraInvalid", "ConfigInvalid",
    }  # fmt: skip
    assert all(issubclass(kind, InvalidInput) for kind in KINDS if issubclass(kind, ValueError))
