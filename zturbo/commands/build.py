"""`zturbo build`: a bundle's graphs become plans, one set per profile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.binding import Precision
from engine.plan import engines_folder
from zturbo.console import print_json, print_table, progress, say
from zturbo.extras import extra

if TYPE_CHECKING:
    from engine.build import BuildEvent
    from engine.plan import PlanInfo


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as trt_models/emoji.")],
    target: Annotated[str, typer.Option(help="tensorrt, tensorrt_rtx, or tensorrt_rtx:8.6,8.9 …")] = "tensorrt",
    profiles: Annotated[
        str, typer.Option(help="SIZE@ROWS, several apart by spaces: '256@2 512x256@1-4 dynamic:128-512@1-8'.")
    ] = "256@2",
    precision: Annotated[Precision, typer.Option(help="Which variant of the graphs.")] = "fp16",
    jobs: Annotated[int | None, typer.Option(help="Plans built side by side; default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build plans where valid ones are not there already; a guided picture takes two rows of a profile."""
    folder = engines_folder(bundle)
    begun = time.perf_counter()
    infos = build(bundle, target, profiles.split(), precision, jobs)
    seconds = time.perf_counter() - begun
    if as_json:
        print_json({"folder": str(folder), "plans": [facts(info) for info in infos], "seconds": round(seconds, 3)})
        return
    rows = [tuple(map(str, facts(info).values())) for info in infos]
    print_table(f"{folder}, {seconds:.0f} s", ("graph", "profile", "size in bytes", "sha256", "seconds"), rows)


def build(bundle: Path, target: str, profiles: list[str], precision: Precision, jobs: int | None) -> list[PlanInfo]:
    """Build with a progress bar, and a line on stderr for each plan that was looked at or built."""
    with extra("rtx" if target.startswith("tensorrt_rtx") else "tensorrt", command="build"), progress() as advance:
        from engine.build import build_engines

        def tell(event: BuildEvent) -> None:
            advance("plans", event.done, event.total)
            say(str(event))

        return build_engines(bundle, target, profiles, precision=precision, jobs=jobs, on_progress=tell)


def facts(info: PlanInfo) -> dict[str, Any]:
    """What a caller needs to know of one plan."""
    identity = info.identity
    return {
        "graph": identity.graph, "profile": identity.profile, "size_bytes": info.plan.size_bytes,
        "sha256": info.plan.sha256, "seconds": round(info.seconds, 1),
    }  # fmt: skip
