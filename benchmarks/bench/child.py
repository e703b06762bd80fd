"""The process of one contender: it makes it, then answers requests, one JSON object a line, until its input ends.

    python -m benchmarks.bench.child MODULE:CLASS

A line is {"ask": method, "with": {argument: value}}; an answer is {"ok": …} or {"error": {…}}. Whatever libraries print
goes to stderr. Runs on Python 3.10 and imports nothing that a contender does not need.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any, Protocol

from engine.errors import ExtraMissing, ZturboError


class Contender(Protocol):
    """Something that paints. Each method takes and gives JSON types.

    Further methods may be asked for by their names: those of `benchmarks/bench/by_*.py`.
    """

    def open(self, *, bundle: str, size: int | None, settings: dict[str, Any]) -> dict[str, Any]:
        """Load what paints; facts: device, precision, weights_bytes, versions."""

    def paint(self, *, prompt: str, seed: int, steps: int, count: int, out: str | None) -> dict[str, Any]:
        """Pictures from noise of (seed, i): `seconds` from prompt to pictures, `stages` of them, `device_ms` by stage.

        out: an .npy file for (count, H, W, 3) uint8. device_ms: what the device was busy for, or the time inside
        graphs where the host's clock is the only one; steps_ms: of each step of the loop.
        """


def main() -> int:
    """Serve stdin; returns the exit code."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library's print would be taken for an answer
    serve(sys.stdin, answers, sys.argv[1])
    return 0


def serve(requests: IO[str], answers: IO[str], factory: str) -> None:
    """Answer until the requests end. Errors of ours travel as their four parts, others as what they say."""
    contender: Any = None
    for line in requests:
        asked = json.loads(line)
        try:
            if contender is None:
                contender = _make(factory)
            found = {"ok": _answer(contender, asked["ask"], asked.get("with", {}))}
        except ZturboError as error:
            found = _error(error)
        except ModuleNotFoundError as error:
            found = _error(_missing(factory, error))
        except Exception as error:  # noqa: BLE001  # whatever a contender raises is the parent's to report
            traceback.print_exc()
            found = {"error": {"kind": type(error).__name__, "actual": str(error).strip() or type(error).__name__}}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _make(factory: str) -> Any:
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)()


def _answer(contender: Any, what: str, arguments: dict[str, Any]) -> Any:
    if what == "memory":
        return {"peak_bytes": peak_bytes()}
    begun = time.perf_counter()
    found = getattr(contender, what)(**arguments)
    return {"took_s": time.perf_counter() - begun, **(found or {})}


def _error(error: ZturboError) -> dict[str, Any]:
    parts = {name: getattr(error, name) for name in ("subject", "actual", "allowed", "remedy")}
    return {"error": {"kind": type(error).__name__, **parts}}


def _missing(factory: str, error: ModuleNotFoundError) -> ZturboError:
    return ExtraMissing(
        f"benchmark, {factory.rpartition('.')[2]}", actual=f"no Python module '{error.name}' in {sys.executable}",
        allowed="an interpreter that has it", remedy="Name one with --python NAME=PATH.",
    )  # fmt: skip


def peak_bytes() -> int:
    """The largest resident memory that this process had, in bytes; 0 where the system does not tell.

    Linux tells it of the program itself (VmHWM): the other count begins with what its parent had when it forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if "VmHWM" in line]
        return int(lines[0].split()[1]) * 1024 if lines else 0
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
