"""A bundle as tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.binding import Binding
from engine.bundle import Bundle, graph_files
from engine.tokens import Chunked, Tokenizer
from zturbo.console import bytes_text, print_table


def print_bundle(folder: Path, bundle: Bundle, *, verify: bool) -> None:
    """Everything that bundle.json says."""
    print_head(folder, bundle)
    print_graphs(bundle)
    print_schedulers(bundle)
    print_files(bundle, verify=verify)


def print_head(folder: Path, bundle: Bundle) -> None:
    """Name, origin and limits."""
    limits, defaults = bundle.limits, bundle.defaults
    facts = {
        "family": bundle.family,
        "sha256": bundle.sha256,
        "source": f"{bundle.source.path}, sha256 {bundle.source.sha256[:12]}…",
        "made with": ", ".join(f"{name} {version}" for name, version in bundle.made_with.items()),
        "sizes": f"{limits.min_px} to {limits.max_px} px, multiples of {limits.multiple_px}",
        "defaults": f"{defaults.height} × {defaults.width} px, {defaults.num_inference_steps} steps of "
        f"{defaults.scheduler}, guidance {defaults.guidance_scale:g}",
        "prompts": f"{prompts_text(bundle.tokenizer, masked=bundle.masked)}, clip skip 0 to {bundle.max_clip_skip}",
        "latents": f"{bundle.latents.channels} channels, {bundle.latents.factor} px each way",
    }
    print_table(f"bundle '{bundle.name}' in {folder}", ("what", "is"), list(facts.items()))


def prompts_text(tokenizer: Tokenizer, *, masked: bool) -> str:
    """How long prompts may be, and what becomes of them."""
    if isinstance(tokenizer, Chunked):
        return f"up to {tokenizer.max_chunks} chunks of {tokenizer.max_tokens} tokens"
    how = "masked" if masked else "not masked"
    return f"in a template, up to {tokenizer.max_tokens} tokens in multiples of {tokenizer.multiple}, {how}"


def print_graphs(bundle: Bundle) -> None:
    """Every graph of every precision with its weights, then the bindings, which all precisions share but for dtypes."""
    rows = [
        (
            variant, graph.stage, graph.name, graph.hoisted_from, graph.precision, graph.file,
            bytes_text(sum(bundle.files[name].size_bytes for name in graph_files(bundle, graph))),
        )
        for variant, graphs in bundle.variants.items()
        for graph in graphs
    ]  # fmt: skip
    print_table("graphs", ("variant", "stage", "graph", "out of", "precision", "file", "size"), rows, right=(6,))
    for precision, graphs in bundle.variants.items():
        bindings = [
            (graph.name, way, *binding_cells(binding, graph.carried.get(binding.name)))
            for graph in graphs
            for way, group in (("in", graph.inputs), ("out", graph.outputs))
            for binding in group
        ]
        print_table(f"bindings, {precision}", ("graph", "", "binding", "dtype", "shape", "lifetime", "then"), bindings)


def binding_cells(binding: Binding, becomes: str | None) -> tuple[str, str, str, str, str]:
    """A binding as cells: name, dtype, shape, lifetime, and which output replaces it after a step."""
    shape = " × ".join(str(axis) for axis in binding.shape)
    return binding.name, binding.dtype, shape, binding.lifetime, f"← {becomes}" if becomes else ""


def print_schedulers(bundle: Bundle) -> None:
    """The schedulers that the tables hold."""
    rows = [(name, entry.class_name, f"{entry.min_steps} to {entry.max_steps}", settings_text(entry.settings))
            for name, entry in bundle.tables.schedulers.items()]  # fmt: skip
    print_table("schedulers", ("scheduler", "diffusers class", "steps", "settings"), rows)


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as `name=value` pairs."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def print_files(bundle: Bundle, *, verify: bool) -> None:
    """Size and hash of every file; load_bundle has compared the sizes already."""
    checked = "size and sha256 compared" if verify else "size compared"
    rows = [(name, bytes_text(entry.size_bytes), entry.sha256[:16], checked) for name, entry in bundle.files.items()]
    print_table("files", ("file", "size", "sha256", "checked"), rows, right=(1,))
