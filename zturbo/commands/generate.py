"""`zturbo generate`: a bundle and a prompt become pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from engine.binding import PlanPrecision
from zturbo.console import Advance, print_json, progress, say
from zturbo.places import check_writable

if TYPE_CHECKING:
    from runtime.images import Result
    from runtime.pipeline import Pipeline
    from runtime.request import Request
    from zturbo.config import Config

T = TypeVar("T")


def run(
    words: Annotated[
        list[str], typer.Argument(metavar="[BUNDLE] PROMPT", help="A bundle's folder, and what to paint.")
    ],
    config: Annotated[Path | None, typer.Option(help="A config.yaml; options here win over what it says.")] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture should not show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps, 1 to 100; default: the bundle's.")] = None,
    guidance: Annotated[str | None, typer.Option(help="0 to 50, 1 or less is unguided; 3,7.5: one per image.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A name that `zturbo inspect` lists.")] = None,
    seed: Annotated[str | None, typer.Option(help="0 to 2^63 - 1; -1: random; 3,5,9: one per image.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    number: Annotated[int | None, typer.Option("-n", "--number", help="Images, 1 to 16.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the PNG files; default: out.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch.")] = None,
    precision: Annotated[PlanPrecision | None, typer.Option(help="Default: the backend's own.")] = None,
    device: Annotated[str | None, typer.Option(help="The backend's word for it: cpu, cuda, cuda:1 …")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    capture: Annotated[bool | None, typer.Option(help="Capture the loop where the backend can.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: paths, seconds, metadata.")] = False,
) -> None:
    """Generate pictures for a prompt; each PNG carries the request that made it."""
    bundle, prompt = bundle_and_prompt(words, config)
    settings = read_config(config)
    request = settings.request(
        prompt, negative_prompt=negative, height=height, width=width, num_inference_steps=steps, scheduler=scheduler,
        guidance_scale=numbers(guidance, float, "--guidance"), seed=numbers(seed, int, "--seed"), num_images=number,
    )  # fmt: skip
    check_writable(out := Path(settings.out) if out is None else out)
    options = {"backend": backend, "precision": precision, "device": device, "threads": threads, "capture": capture}
    with settings.load_pipeline(bundle, **options) as pipeline, progress() as advance:
        tell_backend(pipeline)
        result = generate(pipeline, request, advance)
    tell_result(result.save(out), result, as_json=as_json)


def bundle_and_prompt(words: list[str], config: Path | None) -> tuple[str | None, str]:
    """The two arguments; with a config, which may name a bundle, the prompt alone is enough."""
    if len(words) == 2:
        return words[0], words[1]
    if len(words) == 1 and config is not None:
        return None, words[0]
    what = f"{len(words)} of them; allowed: a bundle and a prompt in quotes, or with --config the prompt alone."
    raise typer.BadParameter(what, param_hint="[BUNDLE] PROMPT")


def read_config(path: Path | None) -> Config:
    """The config of a file, each of its warnings as a remark; without a file, that of no keys."""
    from zturbo.config import Config, load_config

    if path is None:
        return Config()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(path)
    for warning in caught:
        say(f"{warning.category.__name__}: {warning.message}")
    return config


def numbers(text: str | None, kind: Callable[[str], T], option: str) -> T | list[T] | None:
    """An option's number, or those between its commas."""
    if text is None:
        return None
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text[:60]!r} is no number, nor numbers with commas.", param_hint=option) from error
    return found if len(found) > 1 else found[0]


def generate(pipeline: Pipeline, request: Request, advance: Advance, phase: str = "denoising") -> Result:
    """Run one request with a progress bar."""
    return pipeline.generate(request, on_step=lambda step: advance(phase, step.index, step.total))


def tell_backend(pipeline: Pipeline) -> None:
    """Say which backend runs, and why those before it could not: a fallback is never silent."""
    for verdict in pipeline.verdicts:
        if verdict.reason is not None:
            say(f"not {verdict.name}: {verdict.reason}")
    backend = pipeline.backend
    say(f"backend: {backend.name}, {backend.precision}, on {backend.device}")


def tell_result(paths: list[Path], result: Result, *, as_json: bool) -> None:
    """One JSON object, or one line per picture and one with the seconds of each stage."""
    if as_json:
        print_json({"paths": [str(path) for path in paths], "seconds": result.seconds, "metadata": result.metadata})
        return
    for path in paths:
        typer.echo(str(path))
    say(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items()))
