r"""A prompt's own syntax: what in it counts more or less, and where a new chunk begins. Knows no tokens.

`(word)` counts 1.1 times, `[word]` 1/1.1 times, `(word:1.3)` 1.3 times; brackets within brackets multiply. `\(`, `\)`,
`\[`, `\]` and `\\` are the characters themselves, any other backslash is one too. A bracket that is never closed holds
to the end of the text; one that closes nothing is text, and so is what follows a colon and is no plain decimal number:
`(a:1e9)` is `a:1e9`, 1.1 times. `BREAK`, a word of its own in capitals, begins a new chunk.

This is AUTOMATIC1111's web UI, but that no weight leaves MIN_WEIGHT to MAX_WEIGHT, that a lone backslash is kept, and
that BREAK works in brackets and makes no empty chunk. Its prompt editing `[a:b:0.5]`, `[a|b]` and `AND` are text here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FACTORS = {"(": 1.1, "[": 1 / 1.1}
"""What brackets without a number multiply by."""
MIN_WEIGHT, MAX_WEIGHT = -10.0, 10.0
LARGEST = 1e9
"""Of a product on the way, so that it never becomes infinite, nor 0·∞."""
_CLOSES = {")": "(", "]": "["}
_MARK = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|:\s{0,9}(?P<weight>[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))\s{0,9}\)"
    r"|(?P<break>\s*\bBREAK\b\s*)"
    r"|[()\[\]]"
)


class Fragment(NamedTuple):
    """A piece of a prompt and its weight. new_chunk: it begins one."""

    text: str
    weight: float
    new_chunk: bool = False


def fragments(text: str) -> list[Fragment]:
    """A prompt's pieces in order, none of them empty; neighbours that differ in nothing are one."""
    marks = list(_MARK.finditer(text))
    roles, pieces, end = _roles(marks), _Pieces(), 0
    for index, mark in enumerate(marks):
        pieces.add(text[end : mark.start()])
        end = mark.end()
        if mark["break"] is not None:
            pieces.new_chunk = True
        elif index in roles:
            pieces.turn(mark[0], roles[index])
        else:
            pieces.add(mark["literal"] or mark[0])
    pieces.add(text[end:])
    return pieces.found


def _roles(marks: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """By a mark's index: of one that opens, what it multiplies by; None of one that closes. The others are text."""
    waiting: dict[str, list[int]] = {opening: [] for opening in FACTORS}
    roles: dict[int, float | None] = {}
    for index, mark in enumerate(marks):
        opened = waiting.get(_CLOSES.get(mark[0][-1], ""), []) if mark["literal"] is None else []
        if mark[0] in FACTORS:
            waiting[mark[0]].append(index)
            roles[index] = FACTORS[mark[0]]  # stays so where nothing closes it
        elif opened:
            begin = opened.pop()
            roles[index] = None
            if mark["weight"] is not None:
                roles[begin] = float(mark["weight"])
    return roles


class _Pieces:
    """What was read so far. products: of the brackets that are open, by their kind and depth."""

    def __init__(self) -> None:
        self.found: list[Fragment] = []
        self.new_chunk = False
        self._products = {opening: [1.0] for opening in FACTORS}

    def turn(self, mark: str, factor: float | None) -> None:
        """Open or close a bracket."""
        if factor is None:
            self._products[_CLOSES[mark[-1]]].pop()
        else:
            products = self._products[mark]
            products.append(_limited(products[-1] * factor, LARGEST))

    def add(self, text: str) -> None:
        """Add text of the weight that holds here."""
        if not text:
            return
        round_, square = (products[-1] for products in self._products.values())
        weight = min(max(round_ * square, MIN_WEIGHT), MAX_WEIGHT)
        before = self.found[-1] if self.found else None
        if before is not None and before.weight == weight and not self.new_chunk:
            self.found[-1] = before._replace(text=before.text + text)
        else:
            self.found.append(Fragment(text, weight, self.new_chunk))
        self.new_chunk = False


def _limited(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
