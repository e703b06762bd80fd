"""`zturbo generate`: a bundle and a prompt become pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.binding import PlanPrecision
from zturbo.console import Advance, print_json, progress, say
from zturbo.places import check_writable

if TYPE_CHECKING:
    from runtime.denoise import Step
    from runtime.images import Result
    from runtime.pipeline import Pipeline
    from runtime.request import Request


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as trt_models/emoji.")],
    prompt: Annotated[str, typer.Argument(help="What the picture shows: 1 to 4000 characters.")],
    negative: Annotated[str, typer.Option(help="What it should not show.")] = "",
    steps: Annotated[int | None, typer.Option(help="Solver steps, 1 to 100; default: the bundle's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 0 to 50; 1 or less is unguided.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A name that `zturbo inspect` lists.")] = None,
    seed: Annotated[int, typer.Option(help="0 to 2^63 - 1; image i depends on (seed, i) alone.")] = 0,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Last layers of the text encoder to leave out, from 0.")] = None,
    emphasis: Annotated[bool, typer.Option(help="Read (word:1.3), [word] and BREAK; else take them literally.")] = True,
    number: Annotated[int, typer.Option("-n", "--number", help="Images, 1 to 16.")] = 1,
    image: Annotated[Path | None, typer.Option(help="A picture to begin from; resized to height × width.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where to paint over the image, black where it stays.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Above 0, to 1; default: 0.8, with a mask 1.")] = None,
    preview: Annotated[Path | None, typer.Option(help="A PNG file for a small picture after each step.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the PNG files.")] = Path("out"),
    backend: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch.")] = "auto",
    precision: Annotated[PlanPrecision | None, typer.Option(help="Default: the backend's own.")] = None,
    device: Annotated[str | None, typer.Option(help="The backend's word for it: cpu, cuda, cuda:1 …")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    capture: Annotated[bool, typer.Option(help="Capture the loop where the backend can; else plain launches.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: paths, seconds, metadata.")] = False,
) -> None:
    """Generate pictures for a prompt; each PNG carries the request that made it."""
    from runtime.pipeline import Pipeline
    from runtime.request import Request
    from zturbo.picture_file import read_picture

    request = Request(
        prompt=prompt, negative_prompt=negative, height=height, width=width, num_inference_steps=steps, seed=seed,
        guidance_scale=guidance, scheduler=scheduler, num_images=number, clip_skip=clip_skip, emphasis=emphasis,
        image=read_picture("--image", image), mask=read_picture("--mask", mask), strength=strength,
    )  # fmt: skip
    for folder in [out] if preview is None else [out, preview.parent]:
        check_writable(folder)
    with (
        Pipeline.load(
            bundle, backend, precision=precision, device=device, threads=threads, capture=capture
        ) as pipeline,
        progress() as advance,
    ):
        tell_backend(pipeline)
        result = generate(pipeline, request, advance, preview=preview)
    tell_result(result.save(out), result, as_json=as_json)


def generate(
    pipeline: Pipeline, request: Request, advance: Advance, phase: str = "denoising", preview: Path | None = None
) -> Result:
    """Run one request with a progress bar. preview: the file that each step's small pictures go to."""

    def on_step(step: Step) -> None:
        advance(phase, step.index, step.total)
        if preview is not None:
            from zturbo.picture_file import save_preview

            save_preview(step.preview(), preview)

    return pipeline.generate(request, on_step)


def tell_backend(pipeline: Pipeline) -> None:
    """Say which backend runs, and why those before it could not: a fallback is never silent."""
    for verdict in pipeline.verdicts:
        if verdict.reason is not None:
            say(f"not {verdict.name}: {verdict.reason}")
    backend = pipeline.backend
    say(f"backend: {backend.name}, {backend.precision}, on {backend.device}")


def tell_dropped(result: Result) -> None:
    """Say how much of which prompt was not read."""
    for name, count in result.metadata["dropped_tokens"].items():
        if count:
            say(f"{name}: its last {count} tokens find no room and were dropped")


def tell_result(paths: list[Path], result: Result, *, as_json: bool) -> None:
    """One JSON object, or one line per picture and one with the seconds of each stage; and what was dropped."""
    tell_dropped(result)
    if as_json:
        print_json({"paths": [str(path) for path in paths], "seconds": result.seconds, "metadata": result.metadata})
        return
    for path in paths:
        typer.echo(str(path))
    say(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items()))
