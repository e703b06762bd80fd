"""Targets: the words that say what a plan is for, as `tensorrt` or `tensorrt_rtx:8.6,8.9`.

Knows nothing of what is installed; whether a flavour builds for a compute capability is the dialect's to say.
"""

from __future__ import annotations

import re

import msgspec

from engine.dialect import FLAVOURS
from engine.errors import OptionInvalid


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A flavour and the compute capabilities asked for.

    No capabilities: the GPU at hand, or all that a portable flavour knows.
    """

    flavour: str
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.flavour + (":" + ",".join(self.capabilities) if self.capabilities else "")

    @property
    def folder(self) -> str:
        """The name of the target's folder of plans; every file system takes it."""
        return "-".join((self.flavour, *self.capabilities))


def parse_target(text: str) -> Target:
    """Read `FLAVOUR` or `FLAVOUR:CC,CC`. Raises OptionInvalid."""
    flavour, colon, rest = text.partition(":")
    if flavour not in FLAVOURS:
        raise _invalid(repr(text), ", ".join(FLAVOURS))
    words = rest.split(",") if colon else []
    for word in words:
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", word):
            raise _invalid(f"compute capability {word!r}", "numbers such as 8.6, separated by commas")
    if words and not FLAVOURS[flavour].portable:
        raise _invalid(repr(text), f"'{flavour}' alone: it builds for the GPU at hand")
    return Target(flavour=flavour, capabilities=tuple(sorted(set(words), key=_number)))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _invalid(actual: str, allowed: str) -> OptionInvalid:
    remedy = "Use a target such as `tensorrt` or `tensorrt_rtx:8.6,8.9`."
    return OptionInvalid("target", actual=actual, allowed=allowed, remedy=remedy)


def target_from_folder(name: str) -> Target:
    """The target whose folder of plans has this name. Raises OptionInvalid."""
    flavour, *capabilities = name.split("-")
    return parse_target(flavour + (":" + ",".join(capabilities) if capabilities else ""))
