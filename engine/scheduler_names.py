"""Which scheduler a name means: ours, diffusers' class name or a web UI's; case does not matter.

Knows names, not what they stand for; whoever asks raises its own error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

NEAR = 3
"""Names that an error proposes."""
ALIKE = 0.5
"""How alike they are, by difflib's ratio."""


class SchedulerNames:
    """names: ours, each with its aliases. refused: reasons by name."""

    def __init__(self, names: Mapping[str, Iterable[str]], refused: Mapping[str, str]) -> None:
        self._shown = {_plain(one): one for name, aliases in names.items() for one in (*aliases, name)}
        self._names = {_plain(one): name for name, aliases in names.items() for one in aliases}
        self._names |= {_plain(name): name for name in names}
        self._refused = {_plain(name): reason for name, reason in refused.items()}

    def find(self, name: str) -> str | None:
        """Our name, or None."""
        return self._names.get(_plain(name))

    def refusal(self, name: str) -> str | None:
        """Why the scheduler of this name has no tables, where it is one that was refused."""
        return self._refused.get(_plain(name))

    def hint(self, name: str) -> str:
        """A sentence with the names nearest to an unknown one, or nothing."""
        near = difflib.get_close_matches(_plain(name), self._shown, NEAR, ALIKE)
        return f" Did you mean {' or '.join(repr(self._shown[one]) for one in near)}?" if near else ""


def _plain(name: str) -> str:
    """A name without its case, and without spaces around it or doubled in it."""
    return " ".join(name.lower().split())
