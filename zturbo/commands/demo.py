"""`zturbo demo`: eight prompts from a model's folder to one sheet of pictures, and where the time went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.bundle import load_bundle
from engine.errors import BundleError
from zturbo.commands.export import export_model
from zturbo.commands.generate import tell_backend
from zturbo.console import print_json, print_table, progress, say
from zturbo.places import bundle_folder, check_writable

if TYPE_CHECKING:
    from runtime.images import Result

PROMPTS = (
    "a cat on a blue background",
    "a small rocket on black",
    "a big panda on green",
    "an owl left of a cupcake on teal",
    "a robot above a donut on orange",
    "a bicycle on white",
    "a small crab left of a large pumpkin on white",
    "a dragon on black",
)
"""What it was taught, alone and in pairs; then what it does badly: thin lines, sizes in a pair, an unknown thing."""
COLUMNS = 4


def run(
    model: Annotated[Path, typer.Option(help="The model's folder.")] = Path("models/emoji"),
    out: Annotated[Path, typer.Option(help="The folder for sheet.png and the pictures.")] = Path("out/demo"),
    steps: Annotated[int, typer.Option(help="Solver steps, 1 to 100.")] = 20,
    backend: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: sheet, seconds.")] = False,
) -> None:
    """Export the model where there is no bundle yet, and make a sheet of eight pictures."""
    check_writable(out)
    folder = ready_bundle(model)
    results = paint(folder, backend, steps)
    sheet = save_sheet(results, out)
    seconds = {stage: sum(result.seconds[stage] for result in results) for stage in results[0].seconds}
    if as_json:
        print_json({"sheet": str(sheet), "prompts": list(PROMPTS), "seconds": seconds})
        return
    rows = [(stage, f"{value:.3f}", f"{value / len(results):.3f}") for stage, value in seconds.items()]
    print_table(f"{len(results)} pictures, {steps} steps each", ("stage", "seconds", "per picture"), rows, right=(1, 2))
    typer.echo(str(sheet))


def ready_bundle(model: Path) -> Path:
    """The model's bundle, exported first where there is none that can be used."""
    folder = bundle_folder(model)
    try:
        load_bundle(folder)
    except BundleError as error:
        say(f"exporting {model} ({error.subject}: {error.actual})")
        export_model(str(model), folder)
    return folder


def paint(folder: Path, backend: str, steps: int) -> list[Result]:
    """One result per prompt, one request at a time, so that the stages' times add up."""
    from runtime.pipeline import Pipeline
    from runtime.request import Request

    requests = [Request(prompt=prompt, num_inference_steps=steps, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    results = []
    with Pipeline.load(folder, backend) as pipeline, progress() as advance:
        tell_backend(pipeline)
        for done, request in enumerate(requests, start=1):
            results.append(pipeline.generate(request))
            advance("pictures", done, len(requests))
    return results


def save_sheet(results: list[Result], out: Path) -> Path:
    """Each picture as a PNG of its own, and all of them on `sheet.png`, in place of those of the run before."""
    from runtime.images import contact_sheet, save_png

    for index, result in enumerate(results, start=1):
        save_png(result.images[0], out / f"{index:02d}.png", result.metadata)
    sheet = contact_sheet([result.images[0] for result in results], PROMPTS, COLUMNS)
    path = out / "sheet.png"
    save_png(sheet, path)
    return path
