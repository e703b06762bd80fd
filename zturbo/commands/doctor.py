"""`zturbo doctor`: what this machine can run, which backend `auto` takes for a bundle, and why not the ones before.

`--selftest` proves the TensorRT that is installed, and prints a bug report. It exits with 0 where all passed, 1 where
something failed, and 3 where nothing failed but not all could be tested, as without a GPU.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from engine.bundle import FILE, Bundle, load_bundle
from engine.errors import BundleError, OptionInvalid, OutputError, ZturboError
from engine.target import parse_target
from zturbo.console import print_json, print_table, say
from zturbo.host import Gpu, Host, this_host
from zturbo.places import BUNDLES
from zturbo.show_selftest import finding_line, print_report


def run(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder; default: all in trt_models.")] = None,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Build, judge, capture and cut a tiny bundle with TensorRT: a bug report."),
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Of the self-test: tensorrt, tensorrt_rtx …; default: all that are installed.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="A new folder for the self-test's files, which are kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what this machine can run, and which backend `auto` takes."""
    if selftest:
        _check_alone(bundle)
        raise typer.Exit(self_test(target, keep, as_json=as_json))
    if target is not None or keep is not None:
        _refuse("--target" if target is not None else "--keep", "without --selftest", "it with --selftest")
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


def self_test(target: str | None, keep: Path | None, *, as_json: bool) -> int:
    """Test one target, or all that are installed; the exit code. Raises OptionInvalid or OutputError."""
    from zturbo.selftest import VERDICTS, Report, installed_targets, take

    if target is not None:
        parse_target(target)
    host, reports = this_host(), list[Report]()
    if not as_json:
        print_host(host)
    with _workplace(keep) as place:
        for one in [target] if target is not None else installed_targets() or ["tensorrt"]:
            from zturbo.selftest_steps import Steps

            folder = place / parse_target(one).flavour
            folder.mkdir()
            reports.append(Report(one))
            say(f"self-test of {one}")
            take(Steps(one, folder, reports[-1]).all(), reports[-1], tell=lambda found: say(finding_line(found)))
            if not as_json:
                print_report(reports[-1])
    code = next((code for code in (1, 3) if code in {report.exit_code for report in reports}), 0)
    if as_json:
        print_json({**host.facts(), "selftests": [one.json() for one in reports], "verdict": VERDICTS[code]})
    else:
        typer.echo(f"self-test: {VERDICTS[code]}")
    return code


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


@contextlib.contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    """A folder that is removed afterwards, or the one to keep. Raises OutputError."""
    try:
        if keep is not None:
            keep.mkdir(parents=True)
            yield keep
            return
        with tempfile.TemporaryDirectory(prefix="zturbo-selftest-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(
            "doctor --selftest", actual=str(error), allowed="a new folder that can be written",
            remedy="Name another with --keep, or free space where temporary files lie.",
        ) from error  # fmt: skip


def _check_alone(bundle: Path | None) -> None:
    if bundle is not None:
        _refuse(f"bundle '{bundle}'", "with --selftest", "a self-test alone: it makes a bundle of its own")


def _refuse(subject: str, actual: str, allowed: str) -> NoReturn:
    raise OptionInvalid(f"doctor, {subject}", actual=actual, allowed=allowed, remedy="See `zturbo doctor --help`.")
