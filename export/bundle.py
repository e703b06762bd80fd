"""Export: a diffusers folder → a bundle, checked graph by graph before anyone can see it.

The spine of the stage. Does not know families, how a graph is traced, or how a table is found.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.binding import Precision
from engine.bundle import FILE, VERSION, Bundle, decode_bundle, encode_bundle, sealed
from engine.digest import file_sha256
from engine.errors import OptionInvalid, OutputError
from engine.schema import FileEntry, FusedLora, Reference, ReferenceCase, Source
from engine.tablefile import TableFile
from engine.tokens import Chunked, Tokenizer
from export import reference
from export.device import check_device
from export.families import FusedLoraFile, Model, ModelOptions, open_model
from export.graph import GraphSpec, run_module
from export.largest import Ranges
from export.loop import record_loop
from export.place import placed_folder
from export.solver import COLUMNS
from export.source import source_sha256
from export.tables import write_tables
from export.tokenizer import check_same, check_vocabulary, export_templated, export_tokenizer
from export.untrusted import running
from export.variants import Cases, Errors, Recorded, Variant, export_variant, runs, unchecked_variant

Progress = Callable[[str, int, int], None]
LoraFiles = Sequence[tuple[Path, float]]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
FILES = {"tokenizer": "tokenizer.json", "tables": "tables.npz", "reference": "reference.npz"}


def export_bundle(
    source: Path, out: Path, *, precisions: Sequence[Precision] | None = None, schedulers: Sequence[str] | None = None,
    etas: Sequence[float] = (), cache: Path | None = None, device: str = "cpu", origin: str = "folder",
    loras: LoraFiles = (), lora_rank: int = 0, masked: bool = False, checked: bool = True,
    on_progress: Progress | None = None,
) -> Bundle:  # fmt: skip
    """Export the model in `source` to the bundle folder `out`, replacing one that is there in one move.

    precisions: the variants to write, None for both, of a large model fp16 alone, which is what TensorRT gets.
    schedulers: by any of their names, None for all. etas: tables for these too, where a scheduler takes one. cache: a
    folder for tables that were probed before, None for the platform's. device: where torch runs, `cpu`, `cuda:1`.
    origin: where the source came from, as bundle.json keeps it. loras: files and weights, to add to the model's.
    lora_rank: of LoRAs that requests may bring, 1 to 128; 0 for none. masked: rows with captions of different lengths
    may share a batch. checked: False writes graphs one by one, with one module in memory, and neither runs them nor
    records anything: plans are not gated then. on_progress(what, done, total). Raises SourceError, LoraInvalid,
    SchedulerUnsupported, ExportMismatch, OptionInvalid or OutputError; then `out` stays.
    """
    _check_precisions(PRECISIONS if precisions is None else precisions)
    check_device(device)
    _check_apart(source, out)
    model = open_model(source, options_of(loras, lora_rank, masked=masked))
    precisions = default_precisions(model) if precisions is None else precisions
    steps = Steps(2 + checked + len(precisions) * (len(model.graphs) + checked), on_progress)
    with placed_folder(out) as folder:
        steps("tokenizer")
        tokenizer = write_tokenizer(model, folder)
        steps("solver tables")
        path = folder / FILES["tables"]
        tables = write_tables(model.scheduler_config, model.defaults.scheduler, path, schedulers, etas, cache)
        write = write_checked if checked else write_unchecked
        variants, told = write(model, precisions, folder, steps, device)
        bundle = Bundle(
            version=VERSION, sha256="", name=out.name, family=model.family, source=source_entry(model, out, origin),
            made_with=made_with(), latents=model.latents, limits=model.limits, defaults=model.defaults,
            guidance=model.guidance, guidance_offset=model.guidance_offset, tokenizer=tokenizer, tables=tables,
            max_clip_skip=model.max_clip_skip, lora_inputs=model.lora_inputs, loras=fused(model, out),
            masked=model.masked, reference=told, files=file_entries(folder),
            variants={p: variant.graphs for p, variant in variants.items()},
        )  # fmt: skip
        return write_bundle(bundle, folder, out)


def options_of(loras: LoraFiles, lora_rank: int, *, masked: bool) -> ModelOptions:
    """What is asked of a model beside what its folder holds."""
    files = tuple(FusedLoraFile(path, weight) for path, weight in loras)
    return ModelOptions(loras=files, lora_rank=lora_rank, masked=masked)


def fused(model: Model, out: Path) -> tuple[FusedLora, ...]:
    """What bundle.json says of the LoRAs that were added."""
    return tuple(FusedLora(path=_relative(f.path, out), sha256=f.sha256, weight=f.weight) for f in model.loras)


def source_entry(model: Model, out: Path, origin: str) -> Source:
    """What bundle.json says of the source."""
    sha256 = source_sha256(model.source, model.components)
    return Source(path=_relative(model.source, out), sha256=sha256, origin=origin)


def default_precisions(model: Model) -> tuple[Precision, ...]:
    """What is written where nothing was asked for: graphs in fp32 of a large model take four bytes a weight more."""
    return ("fp16",) if model.large else PRECISIONS


def write_unchecked(
    model: Model, precisions: Sequence[Precision], folder: Path, steps: Steps, device: str
) -> tuple[dict[Precision, Variant], Reference]:
    """Export each precision graph by graph, and a reference of nothing."""
    np.savez_compressed(folder / FILES["reference"])
    variants = {precision: unchecked_variant(model, precision, device, folder, steps) for precision in precisions}
    return variants, Reference(file=FILES["reference"], cases=(), loop=None)


def write_checked(
    model: Model, precisions: Sequence[Precision], folder: Path, steps: Steps, device: str
) -> tuple[dict[Precision, Variant], Reference]:
    """Record the fp32 modules, export each precision with one variant's modules in memory, and compare."""
    steps("reference")
    exact = [placed(model.specs("fp32"), device)]
    recorded = record(model, exact[0], folder)
    variants = dict[Precision, Variant]()
    for precision in sorted(precisions, key=PRECISIONS.index):
        specs = exact.pop() if precision == "fp32" else ()
        exact.clear()
        specs = specs or placed(model.specs(precision), device)
        variants[precision] = export_variant(model, precision, specs, folder, recorded, steps)
        del specs
    return variants, reference_entry(model, recorded, variants)


def write_bundle(bundle: Bundle, folder: Path, out: Path) -> Bundle:
    """Seal a bundle and write its bundle.json; what load would refuse is not written. out: where it will lie."""
    bundle = sealed(bundle)
    written = encode_bundle(bundle)
    decode_bundle(written, out / FILE)
    (folder / FILE).write_bytes(written)
    return bundle


def placed(specs: tuple[GraphSpec, ...], device: str) -> tuple[GraphSpec, ...]:
    """The specs, their modules on the device."""
    for spec in specs:
        spec.module.to(device)
    return specs


def write_tokenizer(model: Model, folder: Path) -> Tokenizer:
    """Write tokenizer.json, compared with the source's own, of which a second one must give the same ids."""
    first, *others = (model.source / name for name in model.tokenizers)
    if model.multiple is not None:
        path = folder / FILES["tokenizer"]
        check_vocabulary(first, model.vocabulary, templated=True)
        return export_templated(first, path, multiple=model.multiple, max_tokens=model.max_tokens)
    ids = export_tokenizer(first, folder / FILES["tokenizer"], model.max_tokens)
    for other in others:
        check_same(first, other)
    for name in model.tokenizers:
        check_vocabulary(model.source / name, model.vocabulary)
    return Chunked(file=FILES["tokenizer"], max_tokens=model.max_tokens, max_chunks=model.max_chunks, **ids)


def record(model: Model, specs: Sequence[GraphSpec], folder: Path) -> Recorded:
    """Seeded inputs and fp32 outputs of every graph and of a loop, returned and written to reference.npz.

    specs: those of fp32.
    """
    cases, ranges = Cases(), Ranges()
    for spec in specs:
        for seed, (case, sizes) in enumerate(reference.cases(model).items()):
            inputs = reference.seeded_inputs(spec.inputs, sizes, seed, model)
            with running(model.source, spec.name), ranges.watch(spec):
                cases.setdefault(spec.name, {})[case] = (inputs, run_module(spec, inputs))
    file = TableFile((folder / FILES["tables"]).read_bytes())
    loop = record_loop(model, specs, file.table(model.defaults.scheduler, len(COLUMNS)), runs(specs))
    arrays = {
        f"{case}/{graph}/{name}": array
        for graph, by_case in cases.items()
        for case, (inputs, outputs) in by_case.items()
        for name, array in {**inputs, **outputs}.items()
    }
    arrays |= {f"loop/{name}": array for name, array in loop.arrays().items()}
    np.savez_compressed(folder / FILES["reference"], **arrays)  # type: ignore[arg-type]
    return Recorded(cases, loop, ranges)


def reference_entry(model: Model, recorded: Recorded, variants: Mapping[Precision, Variant]) -> Reference:
    """What bundle.json says of what was recorded."""
    errors = variants["fp16"].errors if "fp16" in variants else Errors({}, {})
    cases = tuple(
        ReferenceCase(name=case, dims=dims, fp16_error=errors.cases.get(case, {}))
        for case, dims in reference.cases(model).items()
    )
    loop, largest = recorded.loop.case(errors.loop), recorded.ranges.values()
    return Reference(file=FILES["reference"], cases=cases, loop=loop, largest=largest)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file below the folder, by its POSIX path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in paths
    }


def made_with() -> dict[str, str]:
    """The versions of what takes part in an export."""
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "onnx")}


class Steps:
    """Counts the steps of a long job and reports each as it starts."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self.done, self.total, self.report = 0, total, on_progress

    def __call__(self, what: str) -> None:
        if self.report is not None:
            self.report(what, self.done, self.total)
        self.done += 1


def _check_apart(source: Path, out: Path) -> None:
    """A bundle never lies in its source, nor around it."""
    a, b = source.resolve(), out.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise OutputError(
            str(out), actual=f"a place that shares files with the source {source}", allowed="a folder apart from it",
            remedy="Choose another place with --out.",
        )  # fmt: skip


def _relative(source: Path, out: Path) -> str:
    """The source as seen from the bundle, so that both can move together; absolute across Windows drives."""
    try:
        return Path(os.path.relpath(source.resolve(), out.resolve())).as_posix()
    except ValueError:
        return source.resolve().as_posix()


def _check_precisions(precisions: Sequence[Precision]) -> None:
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown or not precisions:
        raise OptionInvalid(
            "export, precisions", actual=", ".join(unknown) or "none", allowed=", ".join(PRECISIONS),
            remedy="Pass --precision fp32, fp16 or both.",
        )  # fmt: skip
