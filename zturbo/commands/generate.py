"""`zturbo generate`: a bundle and a prompt become pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from zturbo import generate_options as given
from zturbo.console import Advance, print_json, progress, say
from zturbo.lora_option import read_loras
from zturbo.places import check_writable

if TYPE_CHECKING:
    from runtime.denoise import Step
    from runtime.images import Result
    from runtime.pipeline import Pipeline
    from runtime.request import Request
    from zturbo.config import Config

T = TypeVar("T")


def run(
    words: given.Words, config: given.ConfigFile = None, negative: given.Negative = None, steps: given.Steps = None,
    guidance: given.Guidance = None, scheduler: given.Scheduler = None, eta: given.Eta = None, seed: given.Seed = None,
    height: given.Pixels = None, width: given.Pixels = None, clip_skip: given.ClipSkip = None,
    emphasis: given.Emphasis = None, number: given.Number = None, image: given.ImageFile = None,
    mask: given.MaskFile = None, strength: given.Strength = None, lora: given.Loras = None,
    preview: given.Preview = None, out: given.Out = None,
    backend: given.Backend = None, precision: given.Precision = None, device: given.Device = None,
    threads: given.Threads = None, capture: given.Capture = None, as_json: given.AsJson = False,
) -> None:  # fmt: skip
    """Generate pictures for a prompt; each PNG carries the request that made it."""
    from zturbo.picture_file import read_picture

    bundle, prompt = bundle_and_prompt(words, config)
    settings = read_config(config)
    request = settings.request(
        prompt, negative_prompt=negative, height=height, width=width, num_inference_steps=steps, scheduler=scheduler,
        guidance_scale=numbers(guidance, float, "--guidance"), seed=numbers(seed, int, "--seed"), num_images=number,
        eta=eta, clip_skip=clip_skip, emphasis=emphasis, image=read_picture("--image", image),
        mask=read_picture("--mask", mask), strength=strength, loras=read_loras(lora) or None,
    )  # fmt: skip
    out = Path(settings.out) if out is None else out
    for folder in [out] if preview is None else [out, preview.parent]:
        check_writable(folder)
    options = {"backend": backend, "precision": precision, "device": device, "threads": threads, "capture": capture}
    with settings.load_pipeline(bundle, **options) as pipeline, progress() as advance:
        tell_backend(pipeline)
        result = generate(pipeline, request, advance, preview=preview)
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
