"""A measurement as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def as_json(result: Mapping[str, Any], *, indent: int | None) -> str:
    """The result as JSON text; numbers keep five digits, which is more than a clock tells."""
    return json.dumps(_rounded(result), indent=indent, ensure_ascii=False)


def finish(result: Mapping[str, Any], out: Path | None) -> None:
    """Write the result where a file is named, its folder included, and print it as the last line."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(as_json(result, indent=1) + "\n", encoding="utf-8")
    print(as_json(result, indent=None))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
