"""Export: a diffusers folder → a bundle, checked graph by graph before anyone can see it.

The spine of the stage. Does not know families, how a graph is traced, or how a table is found.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engine.binding import Precision
from engine.bundle import (
    FILE,
    VERSION,
    Bundle,
    FileEntry,
    Reference,
    ReferenceCase,
    SchedulerEntry,
    Source,
    Tables,
    Tokenizer,
    decode_bundle,
    encode_bundle,
    file_sha256,
    sealed,
)  # fmt: skip
from engine.errors import OptionInvalid, OutputError
from export import reference
from export.check import check_graph
from export.families import Model, open_model
from export.graph import GraphSpec, example_dims, onnx_from_module, run_module
from export.place import placed_folder
from export.solver import COLUMNS, MAX_STEPS, ROWS, SCHEDULERS, make_scheduler, table
from export.source import source_sha256
from export.tokenizer import export_tokenizer

Progress = Callable[[str, int, int], None]
Cases = dict[str, dict[str, tuple[reference.Arrays, reference.Arrays]]]
Errors = dict[str, dict[str, dict[str, float]]]
"""{case: {graph: {output: torch's own fp16 error}}}."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
FILES = {"tokenizer": "tokenizer.json", "tables": "tables.npz", "reference": "reference.npz"}


def export_bundle(
    source: Path, out: Path, *, precisions: Sequence[Precision] = PRECISIONS, on_progress: Progress | None = None
) -> Bundle:
    """Export the model in `source` to the bundle folder `out`, replacing one that is there in one move.

    precisions: the variants to write; fp16 is what TensorRT gets. on_progress(what, done, total).
    Raises SourceError, SchedulerUnsupported, ExportMismatch, OptionInvalid or OutputError; then `out` is untouched.
    """
    _check_precisions(precisions)
    _check_apart(source, out)
    model = open_model(source)
    steps = Steps(3 + len(precisions) * len(model.graphs), on_progress)
    with placed_folder(out) as folder:
        steps("tokenizer")
        export_tokenizer(source / "tokenizer", folder / FILES["tokenizer"], model.max_tokens)
        steps("solver tables")
        tables = write_tables(model, folder)
        steps("reference")
        exact = model.specs("fp32")
        cases = record(model, exact, folder)
        variants, errors = export_variants(model, exact, precisions, folder, cases, steps)
        bundle = Bundle(
            version=VERSION, sha256="", name=out.name, family=model.family,
            source=Source(path=_relative(source, out), sha256=source_sha256(source, model.components)),
            made_with=made_with(), latents=model.latents, limits=model.limits, defaults=model.defaults,
            guidance_offset=model.guidance_offset,
            tokenizer=Tokenizer(file=FILES["tokenizer"], max_tokens=model.max_tokens),
            tables=tables, reference=Reference(file=FILES["reference"], cases=reference_cases(model, errors)),
            variants={p: tuple(spec.graph(_file(p, spec)) for spec in specs) for p, specs in variants.items()},
            files=file_entries(folder),
        )  # fmt: skip
        bundle = sealed(bundle)
        written = encode_bundle(bundle)
        decode_bundle(written, out / FILE)  # what load would refuse is not written
        (folder / FILE).write_bytes(written)
    return bundle


def write_tables(model: Model, folder: Path) -> Tables:
    """Probe every scheduler at every step count into tables.npz."""
    arrays, entries = {}, {}
    for name, (class_name, settings) in SCHEDULERS.items():
        for count in range(1, MAX_STEPS + 1):
            arrays[f"{name}/{count}"] = table(name, make_scheduler(name, model.scheduler_config), count)
        entries[name] = SchedulerEntry(class_name=class_name, settings=settings, min_steps=1, max_steps=MAX_STEPS)
    np.savez_compressed(folder / FILES["tables"], **arrays)  # type: ignore[arg-type]
    return Tables(file=FILES["tables"], rows=ROWS, columns=COLUMNS, schedulers=entries)


def record(model: Model, specs: Sequence[GraphSpec], folder: Path) -> Cases:
    """Seeded inputs and fp32 outputs of every graph, returned and written to reference.npz. specs: those of fp32."""
    cases: Cases = {}
    for spec in specs:
        for seed, (case, sizes) in enumerate(reference.cases(model).items()):
            inputs = reference.seeded_inputs(spec.inputs, sizes, seed, model.vocabulary)
            cases.setdefault(spec.name, {})[case] = (inputs, run_module(spec, inputs))
    arrays = {
        f"{case}/{graph}/{name}": array
        for graph, by_case in cases.items()
        for case, (inputs, outputs) in by_case.items()
        for name, array in {**inputs, **outputs}.items()
    }
    np.savez_compressed(folder / FILES["reference"], **arrays)  # type: ignore[arg-type]
    return cases


def fp16_errors(specs: Sequence[GraphSpec], cases: Cases) -> Errors:
    """What torch's own fp16 loses at each case. specs: those of fp16."""
    errors: Errors = {}
    for spec in specs:
        for case, (inputs, expected) in cases[spec.name].items():
            outputs = run_module(spec, inputs)
            found = {name: reference.relative_error(outputs[name], expected[name]) for name in outputs}
            errors.setdefault(case, {})[spec.name] = found
    return errors


def reference_cases(model: Model, errors: Errors) -> tuple[ReferenceCase, ...]:
    """The recorded cases as bundle.json names them."""
    dims = reference.cases(model)
    return tuple(ReferenceCase(name=c, dims=d, fp16_error=errors.get(c, {})) for c, d in dims.items())


def export_variants(
    model: Model,
    exact: tuple[GraphSpec, ...],
    precisions: Sequence[Precision],
    folder: Path,
    cases: Cases,
    steps: Steps,
) -> tuple[dict[Precision, tuple[GraphSpec, ...]], Errors]:
    """Every precision's specs, written and checked, and what fp16 loses. exact: the recorded ones, of fp32."""
    variants: dict[Precision, tuple[GraphSpec, ...]] = {}
    errors: Errors = {}
    for precision in precisions:
        specs = variants[precision] = exact if precision == "fp32" else model.specs(precision)
        if precision == "fp16":
            errors = fp16_errors(specs, cases)
        export_variant(model, precision, specs, folder, cases, errors, steps)
    return variants, errors


def export_variant(
    model: Model,
    precision: Precision,
    specs: Sequence[GraphSpec],
    folder: Path,
    cases: Cases,
    errors: Errors,
    steps: Steps,
) -> None:
    """Write and check every graph of one precision; the fp32 modules take their lean form in it."""
    dims = example_dims(reference.cases(model)["default"], model.latents.factor)
    for spec in specs:
        steps(f"{spec.name} {precision}")
        path = folder / _file(precision, spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx_from_module(spec, reference.seeded_inputs(spec.inputs, dims, 0, model.vocabulary), path)
        own = {case: by_graph[spec.name] for case, by_graph in errors.items()}
        check_graph(spec, precision, path, cases[spec.name], own)


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


def _file(precision: Precision, spec: GraphSpec) -> str:
    return f"graphs/{precision}/{spec.name}.onnx"


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
