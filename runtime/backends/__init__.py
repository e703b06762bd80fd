"""The backends by name, and the choice between them. A backend's module is imported only when it is tried."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from engine.bundle import Bundle
from engine.errors import BackendUnavailable, OptionInvalid
from runtime.backends.base import Backend, BackendOptions

NAMES = ("tensorrt", "tensorrt_rtx", "onnxruntime", "pytorch")
"""In the order that `auto` tries them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend was taken; where not, why not."""

    name: str
    reason: str | None


def open_backend(name: str, folder: Path, bundle: Bundle, options: BackendOptions) -> tuple[Backend, list[Verdict]]:
    """The backend of that name, or for `auto` the first that can run, with a verdict for each that was tried.

    Raises OptionInvalid for an unknown name, BackendUnavailable where it, or every one, cannot run here.
    """
    if name not in ("auto", *NAMES):
        raise OptionInvalid(
            "backend", actual=repr(name), allowed=", ".join(("auto", *NAMES)), remedy="Choose one of them."
        )
    if name != "auto":
        return open_one(name, folder, bundle, options), [Verdict(name, None)]
    verdicts: list[Verdict] = []
    wrong: OptionInvalid | None = None
    for candidate in NAMES:
        try:
            backend = open_one(candidate, folder, bundle, options)
        except (BackendUnavailable, OptionInvalid) as error:  # noqa: PERF203 - a device that only a later one knows
            verdicts.append(Verdict(candidate, str(error)))
            wrong = error if isinstance(error, OptionInvalid) else wrong
        else:
            return backend, [*verdicts, Verdict(candidate, None)]
    if wrong is not None:  # a device that none of them knows
        raise wrong
    reasons = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts)
    raise BackendUnavailable(
        f"bundle '{bundle.name}'", actual=f"no backend that runs here ({reasons})", allowed=", ".join(NAMES),
        remedy="Install one: pip install 'zturbo[cpu]'.",
    )  # fmt: skip


def open_one(name: str, folder: Path, bundle: Bundle, options: BackendOptions) -> Backend:
    """One backend, no choice. Raises BackendUnavailable."""
    module = importlib.import_module(f"runtime.backends.{name}")
    backend: Backend = module.open_backend(folder, bundle, options)
    return backend
