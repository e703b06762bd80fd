"""Plain values → a struct: unknown keys are errors that name the nearest known one, types are never bent.

A struct's fields say in `msgspec.Meta(description=…)` what is allowed there. Knows no key by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec

from engine.errors import ConfigInvalid, shown

S = TypeVar("S", bound=msgspec.Struct)


class Place(NamedTuple):
    """Where a value was read: the file, and its keys from the outermost on with dots between."""

    file: str
    keys: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.keys}" if self.keys else self.file

    def below(self, key: str) -> Place:
        """The place of a key in this one."""
        return Place(self.file, f"{self.keys}.{key}" if self.keys else key)


def struct_from(values: object, kind: type[S], place: Place) -> S:
    """The struct of these values. Raises ConfigInvalid."""
    hints = get_type_hints(kind, include_extras=True)
    read = {}
    for key, value in known_keys(values, hints, place).items():
        inner = next((one for one in get_args(hints[key]) if _is_struct(one)), None)
        if inner is not None and value is not None:
            read[key] = struct_from(value, inner, place.below(key))
        else:
            read[key] = checked(value, hints[key], place.below(key))
    return kind(**read)


def check_fields(struct: msgspec.Struct, place: Place) -> None:
    """Check what a caller passed to a struct's constructor. Raises ConfigInvalid."""
    for key, hint in get_type_hints(type(struct), include_extras=True).items():
        checked(getattr(struct, key), hint, place.below(key))


def checked(value: object, hint: Any, place: Place) -> Any:
    """The value, if it is of the type. Raises ConfigInvalid."""
    try:
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        descriptions = [meta.description for meta in getattr(hint, "__metadata__", ()) if meta.description]
        raise ConfigInvalid(
            str(place), actual=shown(value), allowed=descriptions[0] if descriptions else str(error),
            remedy="Write a value of that kind.",
        ) from error  # fmt: skip


def described(text: str) -> msgspec.Meta:
    """What a field's values are, in the words of an error about it."""
    return msgspec.Meta(description=text)


def known_keys(values: object, known: Collection[str], place: Place) -> dict[str, Any]:
    """The values by key, each of them known. Raises ConfigInvalid for another key, or what is no mapping."""
    if not isinstance(values, Mapping):
        raise ConfigInvalid(
            str(place), actual=shown(values), allowed="keys with values", remedy=f"Known keys: {', '.join(known)}."
        )
    for key in values:
        if not isinstance(key, str) or key not in known:
            word = key if isinstance(key, str) and key[:60].isidentifier() else shown(key)
            near = get_close_matches(word[:60], known, n=1, cutoff=0.5)
            raise ConfigInvalid(
                str(place.below(word[:60])), actual="an unknown key", allowed=", ".join(known),
                remedy=f"Did you mean '{near[0]}'?" if near else "Take it out.",
            )  # fmt: skip
    return dict(values)


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)
