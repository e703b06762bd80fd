"""An export that runs nothing: the same graphs, written with one module in memory at a time, and no reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.bundle import load_bundle
from engine.errors import SourceError
from export import bundle as exporting
from export.bundle import export_bundle
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.conftest import CACHE, FLOW

NAMES = ("conditioning", "encoder", "start", "denoiser", "solver", "decoder", "preview")


@pytest.fixture(scope="module")
def unchecked(zimage_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, asked = tmp_path_factory.mktemp("bundles") / "zimage", []

    def opened(*given: object) -> exporting.Model:
        model = open_model(*given)

        def specs(precision: exporting.Precision, names: object = None) -> tuple[exporting.GraphSpec, ...]:
            asked.append(names)
            return model.specs(precision, names)

        return replace(model, specs=specs)

    open_model = exporting.open_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "open_model", opened)
        patch.setattr(exporting, "run_module", None)
        export_bundle(zimage_source, out, precisions=("fp16",), schedulers=FLOW, cache=CACHE / "tables", checked=False)
    assert asked == [(name,) for name in NAMES]
    return out


def test_the_graphs_are_those_of_a_checked_export(unchecked: Path, zimage_bundle: Path) -> None:
    ours, theirs = load_bundle(unchecked), load_bundle(zimage_bundle)
    assert ours.graphs("fp16") == theirs.graphs("fp16")
    files = [name for name in ours.files if name.startswith("graphs/")]
    assert files
    assert {name: ours.files[name] for name in files} == {name: theirs.files[name] for name in files}
    assert (ours.reference.cases, ours.reference.loop, ours.reference.largest) == ((), None, {})


def test_it_paints(unchecked: Path, zimage_bundle: Path) -> None:
    request = Request(prompt="a cat", num_inference_steps=2, seed=1)
    pictures = []
    for folder in (unchecked, zimage_bundle):
        with Pipeline.load(folder, "onnxruntime", precision="fp16", threads=1) as pipeline:
            pictures.append(pipeline.generate(request).arrays)
    assert np.array_equal(*pictures)


def test_a_module_that_does_not_run_is_a_source_error(
    zimage_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trace runs it."""

    def broken(*_: object) -> None:
        raise RuntimeError("expected input to have 3 channels")

    monkeypatch.setattr("export.variants.onnx_from_module", broken)
    with pytest.raises(SourceError, match="does not run"):
        export_bundle(zimage_source, tmp_path / "out", schedulers=FLOW, cache=CACHE / "tables", checked=False)
    assert not (tmp_path / "out").exists()
