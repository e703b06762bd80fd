"""The options of `zturbo generate`, each with its help; what they mean is the request's and the pipeline's to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.binding import PlanPrecision
from zturbo.lora_option import Loras as Loras  # noqa: PLC0414 - an option of this command too

Words = Annotated[list[str], typer.Argument(metavar="[BUNDLE] PROMPT", help="A bundle's folder, and what to paint.")]
ConfigFile = Annotated[Path | None, typer.Option(help="A config.yaml; options here win over what it says.")]

# What to paint.
Negative = Annotated[str | None, typer.Option(help="What the picture should not show.")]
Steps = Annotated[int | None, typer.Option(help="Solver steps, 1 to 100; default: the bundle's.")]
Guidance = Annotated[str | None, typer.Option(help="0 to 50, 1 or less is unguided; 3,7.5: one per image.")]
Scheduler = Annotated[str | None, typer.Option(help="As docs/schedulers.md lists them: euler, 'DPM++ 2M Karras' …")]
Eta = Annotated[float | None, typer.Option(help="How much noise each step draws, 0 to 1; DDIM and TCD alone.")]
Seed = Annotated[str | None, typer.Option(help="0 to 2^63 - 1; -1: random; 3,5,9: one per image.")]
Pixels = Annotated[int | None, typer.Option(help="Pixels.")]
ClipSkip = Annotated[int | None, typer.Option(help="Last layers of the text encoder to leave out, from 0.")]
Emphasis = Annotated[bool | None, typer.Option(help="Read (word:1.3), [word] and BREAK; else take them literally.")]
Number = Annotated[int | None, typer.Option("-n", "--number", help="Images, 1 to 16.")]
ImageFile = Annotated[Path | None, typer.Option(help="A picture to begin from; resized to height × width.")]
MaskFile = Annotated[Path | None, typer.Option(help="White where to paint over the image, black where it stays.")]
Strength = Annotated[float | None, typer.Option(help="Above 0, to 1; default: 0.8, with a mask 1.")]

# How, and where to.
Preview = Annotated[Path | None, typer.Option(help="A PNG file for a small picture after each step.")]
Out = Annotated[Path | None, typer.Option(help="The folder for the PNG files; default: out.")]
Backend = Annotated[str | None, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or pytorch.")]
Precision = Annotated[PlanPrecision | None, typer.Option(help="Default: the backend's own.")]
Device = Annotated[str | None, typer.Option(help="The backend's word for it: cpu, cuda, cuda:1 …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")]
Capture = Annotated[bool | None, typer.Option(help="Capture the loop where the backend can.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object: paths, seconds, metadata.")]
