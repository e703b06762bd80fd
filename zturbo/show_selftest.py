"""The self-test's findings as lines and a table, with everything that a bug report needs."""

from __future__ import annotations

import typer

from zturbo.console import print_table
from zturbo.selftest import VERDICTS, Report, StepResult


def finding_line(found: StepResult) -> str:
    """One step as it ends: `PASS build (2.4 s): 6 plans …`."""
    return f"{found.outcome} {found.step} ({found.seconds:.1f} s): {found.words}"


def print_report(report: Report) -> None:
    """The steps as a table, then the lines that libraries wrote."""
    rows = [(one.step, one.outcome, f"{one.seconds:.1f}", one.words) for one in report.findings]
    seconds = sum(one.seconds for one in report.findings)
    title = f"self-test of {report.target}: {VERDICTS[report.exit_code]}, {seconds:.0f} s"
    print_table(title, ("step", "", "s", "what was found"), rows, right=(2,))
    for line in report.log:
        typer.echo(f"  {line}")
