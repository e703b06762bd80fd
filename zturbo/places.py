"""Where commands read and write: the folders of models, bundles and pictures, checked before any long work."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import OutputError

BUNDLES = Path("trt_models")


def bundle_folder(source: Path) -> Path:
    """Where the bundle of a model goes unless the caller says otherwise: `trt_models/<name>`."""
    return BUNDLES / source.resolve().name


def check_writable(folder: Path) -> None:
    """Raise OutputError where files could not be made in this folder; nothing is created."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise _refused(folder, f"'{nearest}', which is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _refused(folder, f"'{nearest}', which this user may not write to")


def _refused(folder: Path, actual: str) -> OutputError:
    return OutputError(
        f"output folder '{folder}'", actual=actual, allowed="a folder, or a path where one can be made",
        remedy="Choose another with `--out`.",
    )  # fmt: skip
