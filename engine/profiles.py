"""Profiles: the smallest, the tuned-for and the largest shape of every input of a plan.

Text is `WIDTHxHEIGHT@MIN-MAX` (`256@2`, `768x512@1-4`) or `dynamic:MIN_PX-MAX_PX@MIN-MAX`, where @ counts denoiser
rows: a guided sample takes two. `tMIN-MAX` behind it counts the tokens of a prompt in whole chunks, padding included
(`256@2t77-231`); without it there is one chunk, or any number of tokens where prompts stand in a template. A word such
as `default` stands for the profiles that profile_sets.json gives the bundle's family under it. Knows the bundle's
limits; does not know what a plan is.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from engine.binding import Binding, Dims, Graph, PlanPrecision
from engine.bundle import Bundle
from engine.errors import ProfileInvalid

MAX_ROWS = 64
MAX_NAME = 150
"""Characters in the name of a folder of plans: Windows takes 260 in a whole path."""
MAX_DRAWS = 128
"""The initial noise and one draw for each of 100 steps."""

_TEXT = re.compile(
    r"(?:dynamic:(?P<low>[0-9]{1,5})-(?P<high>[0-9]{1,5})|(?P<width>[0-9]{1,5})(?:x(?P<height>[0-9]{1,5}))?)"
    r"@(?P<min>[0-9]{1,3})(?:-(?P<max>[0-9]{1,3}))?"
    r"(?:t(?P<least>[0-9]{1,5})(?:-(?P<most>[0-9]{1,5}))?)?"
)
_SUFFIXES: dict[str, PlanPrecision] = {"": "fp16", "bf16": "bf16", "fp32": "fp32"}
_SETS = Path(__file__).with_name("profile_sets.json")
_FORMS = "WIDTHxHEIGHT@MIN-MAX or dynamic:MIN_PX-MAX_PX@MIN-MAX, with tMIN-MAX behind it for longer prompts"
_REMEDY = "Write it as `256@2`, `768x512@1-4` or `dynamic:128-512@1-8`."


class Range(NamedTuple):
    """The least, the tuned-for and the greatest value of a symbol."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of one bundle.

    text: as a user writes it, shortest form. symbols: the range of each symbol that a shape may name.
    """

    text: str
    symbols: dict[str, Range]

    def __str__(self) -> str:
        return self.text

    @property
    def slug(self) -> str:
        """The text as a word that every file system takes; `read_set_name` reads it back."""
        return self.text.replace(":", "-", 1)

    @property
    def size(self) -> tuple[int, int]:
        """Rows × pixels at most, then tokens: of two profiles that cover a shape, the smaller is tuned closer to it."""
        rows, height, width, tokens = (self.symbols[name].max for name in ("rows", "height", "width", "tokens"))
        return rows * height * width, tokens

    def ranges(self, binding: Binding) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The least, the tuned-for and the greatest shape of a binding."""
        low, opt, high = ({name: values[i] for name, values in self.symbols.items()} for i in range(3))
        return binding.resolve(low), binding.resolve(opt), binding.resolve(high)

    def shapes(self, graph: Graph) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """The ranges of a graph's inputs in a plan of it; a graph through which samples pass one by one takes one."""
        if not graph.one_by_one:
            return {binding.name: self.ranges(binding) for binding in graph.inputs}
        single = replace(self, symbols={**self.symbols, "samples": Range(1, 1, 1)})
        return {binding.name: single.ranges(binding) for binding in graph.inputs}

    def covers(self, dims: Dims) -> bool:
        """Whether every symbol's value lies in its range."""
        return all(self.symbols[name].min <= value <= self.symbols[name].max for name, value in dims.items())


def parse_profile(text: str, bundle: Bundle) -> Profile:
    """Read a profile's text and check it against the bundle's limits. Raises ProfileInvalid."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise _invalid(text, repr(text), _FORMS, _REMEDY)
    fields = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    rows = _rows(text, fields["min"], fields.get("max", fields["min"]))
    width, height = _sizes(text, fields, bundle)
    tokens = _tokens(text, fields, bundle)
    symbols = {
        "rows": rows, "samples": Range((rows.min + 1) // 2, (rows.max + 1) // 2, rows.max),
        "width": width, "height": height, "draws": Range(1, 1, MAX_DRAWS), "tokens": tokens,
    }  # fmt: skip
    behind = tokens_text(tokens.min, tokens.max, bundle.tokenizer.usual)
    return Profile(_canonical(fields, rows) + behind, symbols)


def parse_profiles(texts: Sequence[str], bundle: Bundle) -> list[Profile]:
    """Read several profiles and names of sets, each profile once. Raises ProfileInvalid, also for none at all."""
    if not texts:
        raise _invalid("profiles", "none", "at least one", _REMEDY)
    sets = named_sets(bundle)
    profiles = [profile for text in texts for profile in _profiles_of(text, sets, bundle)]
    return list({profile.text: profile for profile in profiles}.values())


def named_sets(bundle: Bundle) -> dict[str, list[str]]:
    """What each name of a set stands for with this bundle: {name: texts of profiles}."""
    families = msgspec.json.decode(_SETS.read_bytes(), type=dict[str, dict[str, list[str]]])
    templates = {**families["any"], **families.get(bundle.family, {})}
    sizes = _template_sizes(bundle)
    return {name: [text.format_map(sizes) for text in texts] for name, texts in templates.items()}


def _profiles_of(text: str, sets: dict[str, list[str]], bundle: Bundle) -> list[Profile]:
    if text in sets:
        return [parse_profile(one, bundle) for one in sets[text]]
    if text.isidentifier():
        raise _invalid(text, f"the name of no set of '{bundle.name}'", f"{', '.join(sets)}; {_FORMS}", _REMEDY)
    return [parse_profile(text, bundle)]


def _template_sizes(bundle: Bundle) -> dict[str, str]:
    """What stands in the braces of profile_sets.json.

    default: the size that a request gets by default, as a profile writes it; width, height: its sides. min, max: the
    least and the greatest side. long, short: sides of about 4:3 and the default's area, in steps that halve well (of
    1024 they are 1152 and 896). sixteen, nine: sides of exactly 16:9 and about that area (1280 and 720). chunk, chunks:
    the tokens of one chunk of a prompt, and of three; in a template, of the shortest prompts, and of three times that.
    """
    limits, defaults = bundle.limits, bundle.defaults
    step, side = limits.multiple_px, math.sqrt(defaults.width * defaults.height)
    low, high = math.ceil(limits.min_px / step) * step, limits.max_px // step * step
    coarse = step
    while coarse * 16 <= side:
        coarse *= 2
    long, short = (min(max(round(side * ratio / coarse) * coarse, low), high) for ratio in (2 / 3**0.5, 3**0.5 / 2))
    sizes = {"width": defaults.width, "height": defaults.height, "min": low, "max": high, "long": long, "short": short}
    times = max(min(round(side / (12 * step)), high // (16 * step)), 1)
    sizes |= {"sixteen": 16 * step * times, "nine": 9 * step * times}
    lengths = bundle.tokenizer.lengths[:3]
    sizes |= {"chunk": lengths[0], "chunks": lengths[-1]}
    return {"default": size_text(defaults.width, defaults.height), **{name: str(px) for name, px in sizes.items()}}


def set_name(profiles: Sequence[Profile], precision: PlanPrecision) -> str:
    """The folder of the plans that hold these profiles, `256@2`, `128@2+256@2.bf16`; `read_set_name` reads it back.

    Raises ProfileInvalid where the name would be too long for a folder.
    """
    name = "+".join(profile.slug for profile in profiles) + ("" if precision == "fp16" else f".{precision}")
    if len(name) > MAX_NAME:
        remedy = "Share one plan among fewer profiles, or leave --shared out."
        actual = f"{len(profiles)} profiles, whose folder's name has {len(name)} characters"
        raise _invalid(f"{name[:40]}…", actual, f"{MAX_NAME} characters", remedy)
    return name


def read_set_name(name: str, bundle: Bundle) -> tuple[tuple[Profile, ...], PlanPrecision]:
    """The profiles and the precision of the folder of this name. Raises ProfileInvalid."""
    slugs, _, suffix = name.partition(".")
    if suffix not in _SUFFIXES or name.endswith("."):
        raise _invalid(name, f"a folder of precision '{suffix}'", ", ".join(get_args(PlanPrecision)), _REMEDY)
    texts = (re.sub(r"\Adynamic-", "dynamic:", slug) for slug in slugs.split("+"))
    return tuple(parse_profile(text, bundle) for text in texts), _SUFFIXES[suffix]


def found_sets(target_folder: Path, bundle: Bundle) -> list[tuple[tuple[Profile, ...], PlanPrecision]]:
    """The sets whose folders are there; other folders are none of ours."""
    found = []
    for path in sorted(target_folder.glob("*/")):
        with contextlib.suppress(ProfileInvalid):
            profiles, precision = read_set_name(path.name, bundle)
            if set_name(profiles, precision) == path.name:
                found.append((profiles, precision))
    return found


def _rows(text: str, low: int, high: int) -> Range:
    if not 1 <= low <= high <= MAX_ROWS:
        raise _invalid(text, f"{low}-{high} rows", f"1 ≤ MIN ≤ MAX ≤ {MAX_ROWS}", "A guided image takes two rows.")
    return Range(low, high, high)


def _tokens(text: str, fields: dict[str, int], bundle: Bundle) -> Range:
    entry = bundle.tokenizer
    lengths, (least, most) = entry.lengths, entry.usual
    low = fields.get("least", least)
    high = fields.get("most", low if "least" in fields else most)
    for value in (low, high):
        if value not in lengths:
            allowed = f"multiples of {lengths.step} from {lengths[0]} to {lengths[-1]} tokens"
            remedy = f"Prompts for '{bundle.name}' are filled up to a multiple of {lengths.step}."
            raise _invalid(text, f"{value} tokens", allowed, remedy)
    if low > high:
        raise _invalid(text, f"{low}-{high} tokens", "MIN ≤ MAX", "Swap the two.")
    return Range(low, entry.tuned(low, high), high)


def _sizes(text: str, fields: dict[str, int], bundle: Bundle) -> tuple[Range, Range]:
    """Ranges of width and height; a dynamic one is tuned for the size that a request gets by default."""
    if "low" not in fields:
        width, height = fields["width"], fields.get("height", fields["width"])
        return _size(text, width, width, width, bundle), _size(text, height, height, height, bundle)
    low, high = fields["low"], fields["high"]
    tuned = [min(max(default, low), high) for default in (bundle.defaults.width, bundle.defaults.height)]
    return _size(text, low, tuned[0], high, bundle), _size(text, low, tuned[1], high, bundle)


def _size(text: str, low: int, opt: int, high: int, bundle: Bundle) -> Range:
    limits = bundle.limits
    for value in (low, high):
        if not limits.allow(value):
            allowed = f"multiples of {limits.multiple_px} from {limits.min_px} to {limits.max_px} px"
            raise _invalid(text, f"{value} px", allowed, f"These are the limits of '{bundle.name}'.")
    if low > high:
        raise _invalid(text, f"{low}-{high} px", "MIN_PX ≤ MAX_PX", "Swap the two.")
    return Range(low, opt, high)


def _canonical(fields: dict[str, int], rows: Range) -> str:
    if "low" in fields:
        size = f"dynamic:{fields['low']}-{fields['high']}"
    else:
        size = size_text(fields["width"], fields.get("height", fields["width"]))
    return f"{size}@{rows.min}" + (f"-{rows.max}" if rows.max > rows.min else "")


def size_text(width: int, height: int) -> str:
    """A size in pixels as profiles write it: `256`, `768x512`."""
    return f"{width}" if width == height else f"{width}x{height}"


def tokens_text(low: int, high: int, usual: tuple[int, int]) -> str:
    """Tokens as profiles write them: nothing for the usual ones, else `t154`, `t77-231`."""
    if (low, high) == usual:
        return ""
    return f"t{low}" + (f"-{high}" if high > low else "")


def dims_text(dims: Dims, usual: tuple[int, int]) -> str:
    """The profile that covers these dims and nothing else. usual: the tokens that a profile need not name."""
    size, tokens = size_text(dims["width"], dims["height"]), dims["tokens"]
    return f"{size}@{dims['rows']}{tokens_text(tokens, tokens, usual)}"


def _invalid(text: str, actual: str, allowed: str, remedy: str) -> ProfileInvalid:
    return ProfileInvalid(f"profile '{text}'", actual=actual, allowed=allowed, remedy=remedy)
