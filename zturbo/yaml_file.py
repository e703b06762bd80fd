"""A YAML file as plain values, of any origin: bounded in size and depth, without aliases, tags and keys given twice.

Numbers are those of YAML 1.2 (`010` is ten, `1:30` and dates are text), words for true and false also those of 1.1
(`yes`, `off`), which older files use. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigInvalid

MAX_BYTES = 1 << 16
MAX_DEPTH = 16
"""Mappings and sequences within each other; the reader recurses."""
_TAG = "tag:yaml.org,2002:"
_BOOLEANS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0", lambda _: None),
    "bool": (
        "|".join(f"{word}|{word.title()}|{word.upper()}" for word in _BOOLEANS),
        "tTfFyYnNoO",
        lambda text: _BOOLEANS[text.lower()],
    ),
    "int": (r"[-+]?[0-9]+", "-+0123456789", int),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
}
"""By tag: what a plain scalar of it looks like, the characters it begins with, and its value."""


def read_yaml(path: Path) -> Any:
    """The one document of a file: mappings with text as keys, sequences, text, numbers, booleans, None.

    Raises ConfigInvalid, naming file and line.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        found = f"{type(error).__name__}: {error.strerror or error}"
        raise _invalid(path, found, "a file that can be read", "Check the path.") from error
    except ValueError as error:  # not UTF-8, or a path with NUL
        raise _invalid(path, str(error)[:200], "text in UTF-8", "Save it as UTF-8.") from error
    if len(content) > MAX_BYTES:
        raise _invalid(path, f"more than {MAX_BYTES} bytes", "a small file", "Is it a config at all?")
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Any:
    """The one document of a text; path: what errors name. Raises ConfigInvalid."""
    try:
        loader = _Loader(text)  # looks for characters that may not be there at all
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise _invalid(path, f"{line}{error.problem or error.context}"[:200]) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # escapes that name no character raise their own
        raise _invalid(path, " ".join(str(error).split())[:200]) from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The safe loader in Python; nothing that it inherits makes objects other than those of read_yaml."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    yaml_constructors: dict[Any, Any] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; aliases are refused, since a few lines of them stand for billions of values."""
        if self.check_event(yaml.AliasEvent):
            raise _problem("an alias (*name); write the value out", self.peek_event())
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(f"values nested deeper than {MAX_DEPTH}", self.peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """A dict of whole values; a key that is no text, or comes twice, is an error."""
        if not isinstance(node, yaml.MappingNode):
            raise _problem("no mapping, though it is tagged as one", node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _problem("a key that is no text; quote it", key_node)
            if key in values:
                raise _problem(f"key {key[:60]!r} for a second time", key_node)
            values[key] = self.construct_object(value_node, deep=True)
        return values


def _scalar(loader: _Loader, node: Any, tag: str, value: Callable[[str], Any]) -> Any:
    text = loader.construct_scalar(node)
    try:
        return value(text)
    except (ValueError, KeyError) as error:  # !!int cat, and integers of thousands of digits
        raise _problem(f"{text[:60]!r}, which is no {tag}", node) from error


def _refused(_: _Loader, node: Any) -> Any:
    raise _problem(f"tag {node.tag[:60]!r}; plain values have none", node)


def _problem(text: str, where: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, where.start_mark)


def _invalid(path: Path, actual: str, allowed: str = "YAML of plain values", remedy: str = "Mend it.") -> ConfigInvalid:
    return ConfigInvalid(str(path), actual=actual, allowed=allowed, remedy=remedy)


for _name, (_pattern, _first, _value) in _SCALARS.items():
    _starts = ["" if character == "\0" else character for character in _first]
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _starts)
    _Loader.add_constructor(f"{_TAG}{_name}", partial(_scalar, tag=_name, value=_value))
_Loader.add_constructor(f"{_TAG}str", yaml.SafeLoader.construct_scalar)
_Loader.add_constructor(f"{_TAG}seq", partial(yaml.SafeLoader.construct_sequence, deep=True))
_Loader.add_constructor(f"{_TAG}map", _Loader.construct_mapping)
_Loader.add_constructor(None, _refused)
