"""`zturbo export`: a model, wherever it comes from, becomes a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.binding import Precision
from engine.bundle import Bundle
from zturbo.console import bytes_text, print_json, progress
from zturbo.extras import extra
from zturbo.lora_option import Loras, read_loras
from zturbo.places import BUNDLES, check_writable

Precisions = Literal["both", "fp32", "fp16"]
SOURCE = (
    "A diffusers folder, a .safetensors checkpoint, a hub's ORG/NAME@REVISION, or random:sd15, sd21, sdxl, lcm, zimage."
)
PRECISIONS: dict[Precisions | None, tuple[Precision, ...] | None] = {
    None: None, "both": ("fp32", "fp16"), "fp32": ("fp32",), "fp16": ("fp16",),
}  # fmt: skip


def run(
    source: Annotated[str, typer.Argument(help=SOURCE)],
    out: Annotated[Path | None, typer.Option(help="The bundle's folder; default: trt_models/<name>.")] = None,
    config: Annotated[str | None, typer.Option(help="A checkpoint's configs: a diffusers folder or hub id.")] = None,
    precision: Annotated[
        Precisions | None, typer.Option(help="fp16 is what TensorRT gets; default: both, of a large model fp16.")
    ] = None,
    schedulers: Annotated[str | None, typer.Option(help="By any name, 'euler, DPM++ 2M Karras'; default: all.")] = None,
    eta: Annotated[list[float] | None, typer.Option(help="Tables for this eta too; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where torch runs: cpu, cuda, cuda:1.")] = "cpu",
    lora: Loras = None,
    lora_rank: Annotated[int, typer.Option(help="Of LoRAs that requests may bring, 1 to 128; 0 for none.")] = 0,
    masked: Annotated[
        bool, typer.Option("--masked", help="Z-Image: prompt and negative prompt may differ in length.")
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Write graphs one by one and run none: for models beyond this memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a model to a bundle, and check every graph against the model."""
    with extra("export", command="export"):
        from export.origin import bundle_name
    folder = BUNDLES / bundle_name(source) if out is None else out
    begun = time.perf_counter()
    names = None if schedulers is None else names_of(schedulers)
    bundle = export_model(
        source, folder, PRECISIONS[precision], device, config=config, schedulers=names, etas=tuple(eta or ()),
        loras=read_loras(lora), lora_rank=lora_rank, masked=masked, checked=not unchecked,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    size_bytes = sum(entry.size_bytes for entry in bundle.files.values())
    if as_json:
        facts = {"bundle": str(folder), "sha256": bundle.sha256, "size_bytes": size_bytes, "seconds": round(seconds, 3)}
        print_json(facts)
    else:
        typer.echo(f"{folder}: {len(bundle.files)} files, {bytes_text(size_bytes)}, in {seconds:.0f} s")


def names_of(text: str) -> tuple[str, ...]:
    """Names with commas between them; without a comma with spaces, which some web UIs' names have themselves."""
    parts = text.split(",") if "," in text else text.split()
    return tuple(part.strip() for part in parts if part.strip())


def export_model(
    source: str,
    folder: Path,
    precisions: tuple[Precision, ...] | None = None,
    device: str = "cpu",
    *,
    config: str | None = None,
    schedulers: Sequence[str] | None = None,
    etas: Sequence[float] = (),
    loras: Sequence[tuple[Path, float]] = (),
    lora_rank: int = 0,
    masked: bool = False,
    checked: bool = True,
) -> Bundle:
    """Export with a progress bar. Raises what `export_bundle` raises, and ZturboError without the extra `export`."""
    check_writable(folder.parent)
    with extra("export", command="export"):
        from export.bundle import export_bundle
        from export.origin import open_source

        origin = open_source(source, folder.parent, config=config, device=device)
    with progress() as advance:
        return export_bundle(
            origin.folder, folder, precisions=precisions, schedulers=schedulers, etas=etas, device=device,
            origin=origin.text, on_progress=advance, loras=loras, lora_rank=lora_rank, masked=masked,
            checked=checked,
        )  # fmt: skip
