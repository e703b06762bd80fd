"""bundle.json: what export writes and everything after it reads.

Owns the schema, its strict reading, and the identity of every file. Does not know how a graph was made
nor what runs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from engine.binding import SYMBOLS, Binding, Graph, Precision
from engine.errors import BundleDamaged, BundleInvalid, BundleMissing, BundleVersion, OptionInvalid

VERSION = 1
FILE = "bundle.json"
HOST_INPUTS = (
    "input_ids", "table", "noise", "guidance_scale", "cond_row", "uncond_row", "sample_of_row",
)  # fmt: skip
"""The wires that the host writes; every other input must be some graph's output."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the schema: frozen, and an unknown key is an error."""


class FileEntry(Struct):
    """Size in bytes and sha256 of one file."""

    size_bytes: int
    sha256: str


class Source(Struct):
    """The model that was exported: its folder relative to the bundle, and the hash of its files."""

    path: str
    sha256: str


class Latents(Struct):
    """Channels of the latents, and how many pixels one of them spans along each side."""

    channels: int
    factor: int


class Limits(Struct):
    """Sizes in pixels that the model was made for: height and width from min_px to max_px in steps of multiple_px."""

    min_px: int
    max_px: int
    multiple_px: int


class Defaults(Struct):
    """What a request gets where it names nothing."""

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str


class Tokenizer(Struct):
    """A `tokenizers` file that pads and truncates to max_tokens by itself."""

    file: str
    max_tokens: int


class SchedulerEntry(Struct):
    """One scheduler in the tables: the diffusers class and settings it was probed from, and its range of steps."""

    class_name: str
    settings: dict[str, Any]
    min_steps: int
    max_steps: int


class Tables(Struct):
    """The solver tables: an .npz with one array `<scheduler>/<steps>` of (evaluations + 1, columns), float32.

    Row 0 starts the loop; row i replays model evaluation i. A batch's table is padded to `rows`.
    columns: names by position; a reader ignores those it does not know.
    """

    file: str
    rows: int
    columns: tuple[str, ...]
    schedulers: dict[str, SchedulerEntry]


class ReferenceCase(Struct):
    """One recorded case of reference.npz: keys `<case>/<graph>/<binding>`.

    fp16_error: {graph: {output: ‖fp16 − fp32‖ / ‖fp32‖}}, what torch's own fp16 loses at this case.
    """

    name: str
    dims: dict[str, int]
    fp16_error: dict[str, dict[str, float]]


class Reference(Struct):
    """Seeded inputs and fp32 torch outputs of every graph, for the parity gate."""

    file: str
    cases: tuple[ReferenceCase, ...]


class Bundle(Struct):
    """The whole of bundle.json.

    variants: the graphs by precision, each in the order they run in.
    guidance_offset: what the runtime adds to a request's guidance_scale (1 for pos + g·(pos − neg)).
    """

    version: int
    sha256: str
    name: str
    family: str
    source: Source
    made_with: dict[str, str]
    latents: Latents
    limits: Limits
    defaults: Defaults
    guidance_offset: float
    tokenizer: Tokenizer
    tables: Tables
    reference: Reference
    variants: dict[Precision, tuple[Graph, ...]]
    files: dict[str, FileEntry]

    def graphs(self, precision: Precision) -> tuple[Graph, ...]:
        """The graphs of one precision. Raises OptionInvalid where the bundle has none of it."""
        if precision not in self.variants:
            raise OptionInvalid(
                f"bundle '{self.name}', precision", actual=precision, allowed=", ".join(self.variants),
                remedy=f"Run `zturbo export {self.source.path} --precision {precision}`.",
            )  # fmt: skip
        return self.variants[precision]


def load_bundle(folder: Path) -> Bundle:
    """Read and check bundle.json and the size of every file it names; hashes are checked by `verified_path`.

    Raises BundleMissing, BundleVersion, BundleInvalid or BundleDamaged.
    """
    path = folder / FILE
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleMissing(
            str(folder), actual=f"no readable {FILE} ({error.strerror})", allowed="a folder written by export",
            remedy=f"Run `zturbo export models/{folder.name}` (or `make bundle MODEL={folder.name}`).",
        ) from error  # fmt: skip
    bundle = decode_bundle(raw, path)
    for name, entry in bundle.files.items():
        check_size(folder, name, entry)
    return bundle


def decode_bundle(raw: bytes, path: Path) -> Bundle:
    """Parse bundle.json strictly: its version first, then its schema, its own hash, and its wiring."""
    try:
        version = msgspec.json.decode(raw, type=_Version).version
        if version != VERSION:
            raise BundleVersion(
                str(path), actual=f"version {version}", allowed=f"version {VERSION}", remedy=_reexport(path)
            )
        bundle = msgspec.json.decode(raw, type=Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(path, str(error)) from error
    if bundle.sha256 != body_sha256(bundle):
        raise _invalid(path, "a body that does not match its own sha256 (edited by hand?)")
    if problem := wiring_problem(bundle):
        raise _invalid(path, problem)
    return bundle


class _Version(msgspec.Struct):
    version: int


def sealed(bundle: Bundle) -> Bundle:
    """The bundle with `sha256` set to the hash of everything else in it."""
    return msgspec.structs.replace(bundle, sha256=body_sha256(bundle))


def encode_bundle(bundle: Bundle) -> bytes:
    """bundle.json as bytes: indented, keys in a fixed order."""
    return msgspec.json.format(msgspec.json.encode(bundle, order="deterministic"), indent=1) + b"\n"


def body_sha256(struct: Any) -> str:
    """sha256 over the canonical JSON of a struct with its `sha256` field emptied."""
    body = msgspec.structs.replace(struct, sha256="")
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()


def check_size(folder: Path, name: str, entry: FileEntry) -> None:
    """Raise BundleDamaged where a file is missing, lies outside the folder, or has another size."""
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    actual = path.stat().st_size if inside and path.is_file() else None
    if actual != entry.size_bytes:
        found = "no such file in the bundle" if actual is None else f"{actual} bytes"
        raise BundleDamaged(str(path), actual=found, allowed=f"{entry.size_bytes} bytes", remedy=_reexport(folder / FILE))


def verified_path(folder: Path, bundle: Bundle, name: str) -> Path:
    """The path of one of the bundle's files, once its hash was compared. Raises BundleDamaged."""
    path, entry = folder / name, bundle.files[name]
    actual = file_sha256(path)
    if actual != entry.sha256:
        raise BundleDamaged(
            str(path), actual=f"sha256 {actual[:12]}…", allowed=f"{entry.sha256[:12]}…", remedy=_reexport(folder / FILE)
        )
    return path


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    """hashlib.file_digest for Python 3.10, which lacks it."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def wiring_problem(bundle: Bundle) -> str | None:
    """What is wrong with how the graphs feed each other, or None. Every file named must be listed in `files`."""
    named = [bundle.tokenizer.file, bundle.tables.file, bundle.reference.file]
    for graphs in bundle.variants.values():
        named += [graph.file for graph in graphs]
        if problem := _graphs_problem(graphs):
            return problem
    missing = [name for name in named if name not in bundle.files]
    return f"file {missing[0]!r} is used but not listed in `files`" if missing else None


def _graphs_problem(graphs: tuple[Graph, ...]) -> str | None:
    wires: dict[str, Binding] = {}
    for graph in graphs:
        for binding in graph.inputs:
            carried = binding.name in wires or binding.name in HOST_INPUTS
            if not carried:
                return f"graph {graph.name!r}: nothing feeds its input {binding.name!r}"
            if problem := _binding_problem(graph, binding, wires.get(binding.name)):
                return problem
        for binding in graph.outputs:
            if problem := _binding_problem(graph, binding, wires.get(binding.name)):
                return problem
        wires |= {binding.name: binding for binding in graph.bindings}
        if problem := _carried_problem(graph, wires):
            return problem
    return None


def _carried_problem(graph: Graph, wires: dict[str, Binding]) -> str | None:
    for source, target in graph.carried.items():
        a, b = wires.get(source), wires.get(target)
        if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"graph {graph.name!r}: carried pair {source!r} → {target!r} does not match"
    return None


def _binding_problem(graph: Graph, binding: Binding, wire: Binding | None) -> str | None:
    symbols = [axis.partition("/")[0] for axis in binding.shape if isinstance(axis, str)]
    unknown = [symbol for symbol in symbols if symbol not in SYMBOLS]
    if unknown:
        return f"graph {graph.name!r}, binding {binding.name!r}: unknown axis {unknown[0]!r}"
    if wire is not None and (wire.dtype, len(wire.shape)) != (binding.dtype, len(binding.shape)):
        return f"graph {graph.name!r}, binding {binding.name!r}: {binding.dtype} {binding.shape}, fed {wire.dtype} {wire.shape}"
    return None


def _invalid(path: Path, problem: str) -> BundleInvalid:
    return BundleInvalid(str(path), actual=problem, allowed="what export wrote", remedy=_reexport(path))


def _reexport(path: Path) -> str:
    return f"Run `zturbo export` again for '{path.parent.name}'."
