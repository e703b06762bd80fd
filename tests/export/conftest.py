"""A tiny random model, saved and exported once for all tests of export/."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors; threads that wait for each other cost more than they bring


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers layout."""
    from tests.tiny_model import save_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, fp32 and fp16."""
    from export.bundle import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny_source, folder)
    return folder
