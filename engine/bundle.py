"""bundle.json: what export writes and everything after it reads.

Owns the schema, its strict reading, and the identity of every file. Does not know how a graph was made or is run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec

from engine.binding import Graph, Precision
from engine.digest import file_sha256
from engine.errors import BundleDamaged, BundleInvalid, BundleMissing, BundleVersion, OptionInvalid
from engine.schema import (
    Defaults,
    FileEntry,
    FusedLora,
    Guidance,
    Latents,
    Limits,
    LoraInputs,
    Reference,
    Source,
    Struct,
    Tables,
)
from engine.tokens import Chunked, Tokenizer
from engine.wiring import LORA, host_wires, wiring_problem

VERSION = 5
FILE = "bundle.json"


class Bundle(Struct, frozen=True):
    """The whole of bundle.json.

    variants: the graphs by precision, each in the order they run in. guidance_offset: what the runtime adds to a
    request's guidance_scale (1 for pos + g·(pos − neg)). guidance: whether it costs a second denoiser row, or is an
    embedding that the denoiser reads. max_clip_skip: the most layers that clip_skip may name. loras: what was fused
    into the weights. lora_inputs: how the denoiser takes more of them with each request, or None. masked: whether the
    denoiser of a templated bundle leaves out what pads a row beyond its own length, so that rows of different lengths
    may share the tokens axis.
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
    guidance: Guidance
    tokenizer: Tokenizer
    max_clip_skip: Annotated[int, msgspec.Meta(ge=0)]
    tables: Tables
    reference: Reference
    variants: dict[Precision, tuple[Graph, ...]]
    files: dict[str, FileEntry]
    loras: tuple[FusedLora, ...] = ()
    lora_inputs: LoraInputs | None = None
    masked: bool = False

    def graphs(self, precision: Precision) -> tuple[Graph, ...]:
        """The graphs of one precision. Raises OptionInvalid where the bundle has none of it."""
        if precision not in self.variants:
            export = "Export the source again with `--precision both`."
            raise OptionInvalid(
                f"bundle '{self.name}', precision", actual=precision, allowed=", ".join(self.variants),
                remedy=export if precision in get_args(Precision) else "Choose one of these.",
            )  # fmt: skip
        return self.variants[precision]


def load_bundle(folder: Path) -> Bundle:
    """Read and check bundle.json and the size of every file it names; hashes are checked by `verified_path`.

    Raises BundleMissing, BundleVersion, BundleInvalid or BundleDamaged.
    """
    path = folder / FILE
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file system takes the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleMissing(
            str(folder), actual=f"no readable {FILE} ({reason})", allowed="a folder written by export",
            remedy=f'Run `zturbo export SOURCE --out "{folder}"`.',
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
    if problem := bundle_problem(bundle):
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
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        actual = path.stat().st_size if inside and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, with a NUL, or of links in a circle
        actual = None
    if actual != entry.size_bytes:
        found = "no such file in the bundle" if actual is None else f"{actual} bytes"
        raise _damaged(path, found, f"{entry.size_bytes} bytes", folder)


def verified_path(folder: Path, bundle: Bundle, name: str) -> Path:
    """The path of one of the bundle's files, once its hash was compared. Raises BundleDamaged."""
    return verified_file(folder, name, bundle.files[name])


def verified_file(folder: Path, name: str, entry: FileEntry) -> Path:
    """The path of a file that is to be this entry's, once its hash was compared. Raises BundleDamaged."""
    path = folder / name
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise _damaged(path, f"unreadable ({error.strerror})", "the file that export wrote", folder) from error
    if actual != entry.sha256:
        raise _damaged(path, f"sha256 {actual[:12]}…", f"{entry.sha256[:12]}…", folder)
    return path


def graph_files(bundle: Bundle, graph: Graph) -> list[str]:
    """The ONNX file of a graph and the files of its external data, `<file>.*`."""
    return sorted(name for name in bundle.files if name == graph.file or name.startswith(graph.file + "."))


def verified_graph(folder: Path, bundle: Bundle, graph: Graph) -> Path:
    """The path of a graph's ONNX file, once its hash and those of its external data were compared.

    Raises BundleDamaged.
    """
    for name in graph_files(bundle, graph):
        verified_path(folder, bundle, name)
    return folder / graph.file


def bundle_problem(bundle: Bundle) -> str | None:
    """What in a bundle does not fit together though each value is allowed, or None."""
    named = [bundle.tokenizer.file, bundle.tables.file, bundle.reference.file]
    named += [graph.file for graphs in bundle.variants.values() for graph in graphs]
    if missing := [name for name in named if name not in bundle.files]:
        return f"file {missing[0]!r} is used but not listed in `files`"
    latents, tables, limits, defaults = bundle.latents, bundle.tables, bundle.limits, bundle.defaults
    if defaults.scheduler not in tables.schedulers:
        return f"default scheduler {defaults.scheduler!r} without tables"
    if limits.multiple_px % latents.factor:
        return f"sizes in multiples of {limits.multiple_px} px, which latents of factor {latents.factor} do not divide"
    if not (limits.allow(defaults.height) and limits.allow(defaults.width)):
        return f"a default size of {defaults.width}x{defaults.height} outside its own limits"
    if problem := _prompt_problem(bundle):
        return problem
    host = host_wires(latents.channels, latents.factor, tables.rows, len(tables.columns))
    loras = bundle.lora_inputs
    hosts = {p: host if loras is None else {**host, LORA: loras.wire(p)} for p in bundle.variants}
    problems = [wiring_problem(graphs, hosts[precision]) for precision, graphs in bundle.variants.items()]
    return next((problem for problem in problems if problem), None) if problems else "no graphs"


def _prompt_problem(bundle: Bundle) -> str | None:
    entry = bundle.tokenizer
    if isinstance(entry, Chunked):
        return "a mask of captions, with a tokenizer of chunks" if bundle.masked else None
    if entry.max_tokens % entry.multiple:
        return f"prompts of at most {entry.max_tokens} tokens, which is no multiple of {entry.multiple}"
    return None


def _invalid(path: Path, problem: str) -> BundleInvalid:
    return BundleInvalid(str(path), actual=problem, allowed="what export wrote", remedy=_reexport(path))


def _damaged(path: Path, actual: str, allowed: str, folder: Path) -> BundleDamaged:
    return BundleDamaged(str(path), actual=actual, allowed=allowed, remedy=_reexport(folder / FILE))


def _reexport(path: Path) -> str:
    return f"Run `zturbo export` again for '{path.parent.name}'."
