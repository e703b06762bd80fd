"""`zturbo build`: a bundle's graphs become plans, one set per profile; or the plans that are there are checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.binding import PlanPrecision
from engine.errors import OptionInvalid
from engine.plan import Options, build_command, engines_folder
from engine.verdict import TOLERANCE
from zturbo.console import print_json, print_table, progress, say
from zturbo.extras import extra
from zturbo.show_plan import print_findings

if TYPE_CHECKING:
    from engine.build import BuildEvent
    from engine.plan import PlanInfo

INTERRUPTED, UNSOUND = 130, 1
BUILT = "the plans that are finished stay, and the same command builds the rest"
CHECKED = "no plan was built; the verdicts that were reached stay"
REMIND_S = 30
HEEDED = "--target, --profiles, --shared, --precision, --tolerance and --without"
"""What --verify heeds."""
TARGET, PROFILES = "tensorrt", "default"
Profiles = Annotated[
    str | None,
    typer.Option(
        help="SIZE@ROWS or names of sets, apart by spaces: '256@2 512x256@1-4 dynamic:128-512@1-8 portrait'; "
        f"default: {PROFILES}."
    ),
]
Without = Annotated[
    list[str] | None, typer.Option(help="A graph to leave out that not every picture needs: encoder, preview.")
]


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as trt_models/emoji.")],
    target: Annotated[
        str | None, typer.Option(help=f"tensorrt, tensorrt_rtx, tensorrt_rtx:8.6,8.9 …; default: {TARGET}.")
    ] = None,
    profiles: Profiles = None,
    shared: Annotated[bool, typer.Option("--shared", help="One plan per graph, with all the profiles in it.")] = False,
    parts: Annotated[str, typer.Option(help="Of the denoiser, each built by itself: a number, or auto.")] = "auto",
    precision: Annotated[PlanPrecision, typer.Option(help="What the plans compute in.")] = "fp16",
    level: Annotated[int | None, typer.Option(help="TensorRT's optimization level, 0 to 5; default: its own.")] = None,
    workspace: Annotated[int | None, typer.Option(help="MiB that a layer may take at most; default: all.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Plans built side by side; default: one per core.")] = None,
    tolerance: Annotated[float, typer.Option(help="Times torch's own fp16 error that the gate allows.")] = TOLERANCE,
    without: Without = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build nothing: check what is there, write verdicts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build plans where valid ones are not there already; a guided picture takes two rows of a profile."""
    words = None if profiles is None else profiles.split()
    if verify:
        refuse_with_verify(parts=None if parts == "auto" else parts, level=level, workspace=workspace, jobs=jobs)
        check(
            bundle, target, words, shared=shared, precision=precision, tolerance=tolerance, without=without or (),
            as_json=as_json,
        )  # fmt: skip
        return
    begun = time.perf_counter()
    with building(target or TARGET) as tell:
        from engine.build import build_engines

        infos = build_engines(
            bundle, target or TARGET, words if words is not None else [PROFILES], precision=precision,
            options=Options(level=level, workspace_mib=workspace), shared=shared, parts=parts_from(parts), jobs=jobs,
            tolerance=tolerance, without=without or (), on_progress=tell,
        )  # fmt: skip
    show_built(engines_folder(bundle), infos, time.perf_counter() - begun, as_json=as_json)


def refuse_with_verify(**given: object) -> None:
    """Raise OptionInvalid for an option that only a build heeds."""
    for name, value in given.items():
        if value is not None:
            raise OptionInvalid(
                name, actual=f"{value} with --verify", allowed=f"{HEEDED} with it",
                remedy="Leave it out: --verify builds nothing.",
            )  # fmt: skip


def parts_from(text: str) -> int | None:
    """A number of parts; None for `auto`. Raises OptionInvalid."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdecimal():
        raise OptionInvalid("parts", actual=repr(text), allowed="auto, or a number from 1", remedy="Leave it out.")
    return int(text)


@contextmanager
def building(target: str, stays: str = BUILT) -> Iterator[Callable[[BuildEvent], None]]:
    """A progress bar with the time left, and on stderr a line for each plan that was looked at, built or judged.

    Where stderr is no terminal, a line about what runs every REMIND_S seconds instead of the bar. stays: what an
    interrupt leaves, in words.
    """
    bar, told = sys.stderr.isatty(), 0.0
    with extra("rtx" if target.startswith("tensorrt_rtx") else "tensorrt", command="build"), progress() as advance:

        def tell(event: BuildEvent) -> None:
            nonlocal told
            advance(phase(event) if bar else "plans", event.done, event.total)
            if event.kind == "running" and (bar or event.elapsed < told + REMIND_S):
                return
            if event.kind == "running":
                told = event.elapsed
            say(f"{event}, {phase(event)}" if event.kind == "running" else str(event))

        try:
            yield tell
        except KeyboardInterrupt as error:
            say(f"interrupted: {stays}")
            raise typer.Exit(INTERRUPTED) from error


def phase(event: BuildEvent) -> str:
    """What the bar says: `3 building, about 4 min left`."""
    if not event.running:
        return "plans"
    left = "" if event.left is None else f", about {minutes(event.left)} left"
    return f"{event.running} building{left}"


def minutes(seconds: float) -> str:
    """A time for people, no more exact than a guess is."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show_built(folder: Path, infos: list[PlanInfo], seconds: float, *, as_json: bool) -> None:
    """Every plan of a finished build."""
    if as_json:
        print_json({"folder": str(folder), "plans": [facts(info) for info in infos], "seconds": round(seconds, 3)})
        return
    columns = ("plan", "profile", "size in bytes", "sha256", "seconds", "verdict")
    rows = [tuple(map(str, facts(info).values())) for info in infos]
    print_table(f"{folder}, {seconds:.0f} s", columns, rows)


def facts(info: PlanInfo) -> dict[str, Any]:
    """What a caller needs to know of one plan."""
    identity = info.identity
    return {
        "graph": identity.name, "profile": " + ".join(identity.profiles), "size_bytes": info.plan.size_bytes,
        "sha256": info.plan.sha256, "seconds": round(info.seconds, 1),
        "verdict": info.verdict.text,
    }  # fmt: skip


def check(
    bundle: Path, target: str | None, profiles: list[str] | None, *, shared: bool, precision: PlanPrecision,
    tolerance: float, without: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Print what each plan is worth; exit code 1 where one is not sound, with what mends it."""
    with building(target or TARGET, CHECKED) as tell:
        from engine.audit import audit

        findings = audit(
            bundle, target, profiles, shared=shared, precision=precision, tolerance=tolerance, without=without,
            on_progress=tell,
        )  # fmt: skip
    folder = engines_folder(bundle)
    commands = list(dict.fromkeys(finding.command for finding in findings if finding.command))
    if not findings:
        texts = " ".join(profiles or [PROFILES])
        commands = [build_command(bundle, target or TARGET, texts, precision, shared=shared)]
        others = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*/"))
        say(f"no plans for this; there are: {', '.join(others) or 'none'}")
    print_findings(folder, findings, commands, as_json=as_json)
    if commands:
        raise typer.Exit(UNSOUND)
