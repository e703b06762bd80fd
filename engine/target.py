"""Targets: the words that say what plans are for, as `tensorrt` or `tensorrt_rtx:8.6,8.9`, and the folders' names.

Knows nothing of what is installed; engine/site.py fills in the version and the GPU's compute capability.
"""

from __future__ import annotations

import re

import msgspec

from engine.dialect import FLAVOURS
from engine.errors import OptionInvalid

_FOLDER = re.compile(r"(?P<flavour>[a-z_]+)-(?P<version>[0-9][0-9A-Za-z._+]*)(?P<capabilities>(?:-sm[0-9]{2,3})*)")


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The flavour, its exact version, and the compute capabilities that plans are for.

    version: None in what a user asks for. capabilities: of a portable flavour those it was restricted to, else none;
    of another the GPU's, and none in what a user asks for.
    """

    flavour: str
    version: str | None = None
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As a user asks for it: what the machine at hand decides is left out."""
        restricted = self.capabilities if FLAVOURS[self.flavour].portable else ()
        return self.flavour + (":" + ",".join(restricted) if restricted else "")

    @property
    def folder(self) -> str:
        """The name of the target's folder of plans, `tensorrt-8.6.0-sm90`; every file system takes it."""
        version = [] if self.version is None else [_slug(self.version)]
        return "-".join((self.flavour, *version, *("sm" + name.replace(".", "") for name in self.capabilities)))

    def fits(self, version: str, capability: str) -> bool:
        """Whether its plans are for this version and for a GPU of this compute capability."""
        return self.version == _slug(version) and (not self.capabilities or capability in self.capabilities)


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


def target_from_folder(name: str) -> Target:
    """The target whose folder of plans has this name. Raises OptionInvalid."""
    match = _FOLDER.fullmatch(name)
    if match is None or match["flavour"] not in FLAVOURS:
        raise _invalid(f"folder {name!r}", "a folder that build made")
    digits = re.findall(r"-sm([0-9]+)([0-9])", match["capabilities"])
    capabilities = tuple(f"{major}.{minor}" for major, minor in digits)
    return Target(flavour=match["flavour"], version=match["version"], capabilities=capabilities)


def _slug(version: str) -> str:
    return re.sub(r"[^0-9A-Za-z._+]", "_", version)


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _invalid(actual: str, allowed: str) -> OptionInvalid:
    remedy = "Use a target such as `tensorrt` or `tensorrt_rtx:8.6,8.9`."
    return OptionInvalid("target", actual=actual, allowed=allowed, remedy=remedy)
