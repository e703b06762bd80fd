"""`zturbo doctor`: what this machine can run, which backend `auto` takes for a bundle, and why not the ones before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.bundle import FILE, Bundle, load_bundle
from engine.errors import BundleError, ZturboError
from zturbo.console import print_json, print_table
from zturbo.host import Gpu, Host, this_host
from zturbo.places import BUNDLES


def run(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder; default: all in trt_models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what this machine can run, and which backend `auto` takes."""
    host = this_host()
    if bundle is not None:
        load_bundle(bundle)  # a bundle that was named must be usable; those found are only reported on
    bundles = {str(folder): diagnose(folder) for folder in ([bundle] if bundle is not None else found_bundles())}
    if as_json:
        print_json({**host.facts(), "bundles": bundles})
        return
    print_host(host)
    for folder, diagnosis in bundles.items():
        print_diagnosis(folder, diagnosis)
    if not bundles:
        typer.echo(f"no bundle in {BUNDLES}/: `zturbo export models/emoji` makes one")


def found_bundles() -> list[Path]:
    """Every folder in trt_models that has a bundle.json."""
    return sorted(path.parent for path in BUNDLES.glob(f"*/{FILE}"))


def diagnose(folder: Path) -> dict[str, Any]:
    """What `auto` takes for a bundle: {"takes": name or None, "backends": {name: None or why it cannot run}}.

    Each backend is opened, its engines or sessions for the default size loaded: the only proof.
    A bundle that cannot be used: {"takes": None, "problem": …}.
    """
    from runtime.backends import NAMES

    try:
        loaded = load_bundle(folder)
    except BundleError as error:
        return {"takes": None, "problem": f"{type(error).__name__}: {error}", "backends": {}}
    verdicts = {name: verdict(name, folder, loaded) for name in NAMES}
    return {"takes": next((name for name, reason in verdicts.items() if reason is None), None), "backends": verdicts}


def verdict(name: str, folder: Path, bundle: Bundle) -> str | None:
    """None where the backend can run the bundle here, else why not."""
    from runtime.backends import open_one
    from runtime.backends.base import BackendOptions

    try:
        open_one(name, folder, bundle, BackendOptions()).close()
    except ZturboError as error:
        return f"{type(error).__name__}: {error}"
    return None


def print_host(host: Host) -> None:
    """The machine and the libraries."""
    gpus = [gpu_text(gpu) for gpu in host.gpus]
    rows = [
        ("Python", host.python),
        ("system", host.system),
        ("processor", f"{host.processor}, {host.cores} cores for this process"),
        *[("GPU", gpu) for gpu in gpus or [host.no_gpu]],
        *[(name, version or "not installed") for name, version in host.libraries.items()],
        ("ONNX Runtime's providers", ", ".join(host.providers) or "none"),
    ]
    print_table("this machine", ("what", "is"), rows)


def gpu_text(gpu: Gpu) -> str:
    """A GPU in one line."""
    memory = "memory unknown" if gpu.memory_mib is None else f"{gpu.memory_mib} MiB"
    return f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}, driver {gpu.driver}"


def print_diagnosis(folder: str, diagnosis: dict[str, Any]) -> None:
    """One bundle's backends, in the order that `auto` tries them."""
    if "problem" in diagnosis:
        typer.echo(f"{folder}: {diagnosis['problem']}")
        return
    takes = diagnosis["takes"]
    rows = [
        (name, "taken by auto" if name == takes else "can run" if reason is None else "cannot run", reason or "")
        for name, reason in diagnosis["backends"].items()
    ]
    print_table(folder, ("backend", "", "why"), rows)
