"""The self-test: whether the TensorRT that is installed here builds, computes, captures and cuts as it should.

What it runs is a bundle of its own (selftest_bundle.py), so it needs no model, no torch and no network. Each step says
PASS, FAIL or SKIPPED and why; none stops the report. Prints nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.dialect import FLAVOURS, load_dialect
from engine.errors import BackendUnavailable, ExtraMissing, ZturboError

Outcome = Literal["PASS", "FAIL", "SKIPPED"]
VERDICTS = {0: "passed", 1: "failed", 3: "incomplete"}
"""By exit code. incomplete: nothing failed, but not all could be tested here, as where there is no GPU."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found. optional: its being skipped leaves the self-test complete."""

    step: str
    outcome: Outcome
    seconds: float
    words: str
    optional: bool = False


@dataclass(slots=True)
class Report:
    """Everything about one target. facts: what steps measured, as JSON types. log: lines that libraries wrote."""

    target: str
    findings: list[StepResult] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, 1 or 3; see VERDICTS."""
        if any(one.outcome == "FAIL" for one in self.findings):
            return 1
        return 3 if any(one.outcome == "SKIPPED" and not one.optional for one in self.findings) else 0

    def json(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "verdict": VERDICTS[self.exit_code]}


class Skip(Exception):
    """Raised by a step that cannot be tested here; the message says why."""


class Wrong(Exception):
    """Raised by a step that found something wrong; the message says what."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to test. run: returns what it found in words. needs: steps that must have passed."""

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()
    optional: bool = False


def installed_targets() -> list[str]:
    """The flavours whose module can be imported."""
    found = []
    for name in FLAVOURS:
        with contextlib.suppress(BackendUnavailable):
            load_dialect(name)
            found.append(name)
    return found


def take(steps: list[Step], report: Report, tell: Callable[[StepResult], None]) -> None:
    """Take the steps in turn into the report; tell each as it ends."""
    with listening(report.log):
        for step in steps:
            begun = time.perf_counter()
            missing = [name for name in step.needs if name not in passed(report)]
            outcome, words = _taken(step, report.log) if not missing else _left_out(missing, report)
            seconds = round(time.perf_counter() - begun, 3)
            report.findings.append(StepResult(step.name, outcome, seconds, words, step.optional))
            tell(report.findings[-1])


def passed(report: Report) -> set[str]:
    """The names of the steps that passed."""
    return {one.step for one in report.findings if one.outcome == "PASS"}


def _taken(step: Step, log: list[str]) -> tuple[Outcome, str]:
    """A bug report must come out whatever happens, so nothing that a step raises gets further."""
    try:
        return "PASS", step.run()
    except Skip as reason:
        return "SKIPPED", str(reason)
    except ExtraMissing as error:
        return "SKIPPED", str(error)
    except Wrong as reason:
        return "FAIL", str(reason)
    except ZturboError as error:
        return "FAIL", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001
        log.extend(traceback.format_exc().splitlines())
        return "FAIL", f"{type(error).__name__}: {error}"


def _left_out(missing: list[str], report: Report) -> tuple[Outcome, str]:
    """Why a step is not taken: the reason of the first that is missing, where that one was skipped itself."""
    first = next((one for one in report.findings if one.step == missing[0]), None)
    if first is not None and first.outcome == "SKIPPED" and first.words.startswith("no "):
        return "SKIPPED", first.words.partition(":")[0]
    return "SKIPPED", f"needs {' and '.join(missing)}"


@contextlib.contextmanager
def listening(log: list[str]) -> Iterator[None]:
    """Take down what zturbo logs and what anyone warns of."""
    logger, handler = logging.getLogger("zturbo"), _Lines(log)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, *_, **__: log.append(f"{category.__name__}: {message}")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Lines(logging.Handler):
    """Log records as lines of a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Add a record."""
        self._lines.append(f"{record.name}: {record.getMessage()}")
