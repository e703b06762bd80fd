"""What every test shares: quiet threads, and the bundles of a tiny random model and of the emoji model.

Idle OpenMP threads would spin on the cores that the tests need, so the policy is set before torch is imported.
Bundles lie in .cache/tests, apart from trt_models, so that tests never change what a user made. They are exported
again when they are older than the exporter or their model.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1" if SIDE_BY_SIDE else str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

hypothesis.settings.register_profile(
    "house", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("house")
"""No test fails because the machine is busy: hypothesis gives up where drawing ten examples takes a second."""

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "tests"
CACHE.mkdir(parents=True, exist_ok=True)
MAKING = FileLock(CACHE / ".lock")
"""Held while anything of CACHE is made: several processes may run tests."""
SCHEDULERS = (
    "euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "heun", "pndm", "unipc", "lcm",
)  # fmt: skip
"""What the tests' bundles have tables for: each of the row's columns is used by one of them."""
FLOW = ("flow_euler",)
"""The same of flow matching."""


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of dummy graphs, fp32 and fp16, which tests/fake_backend.py runs; to be read only."""
    from tests.fake_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "fake", ("fp32", "fp16"))


@pytest.fixture
def own_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of `bundle_folder` that a test may damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundles" / "fake"))


@pytest.fixture(scope="session")
def tiny_source() -> Path:
    """A model of random weights in diffusers layout; a picture takes it well under a second."""
    folder = CACHE / "models" / "tiny"
    with MAKING:
        if not is_newer(folder / "model_index.json", [ROOT / "tests" / "tiny_model.py"]):
            pytest.importorskip("torch")
            from tests.tiny_model import save_tiny_model

            save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: Path) -> Path:
    """The bundle of `tiny_source`, fp32 and fp16."""
    return exported(tiny_source)


@pytest.fixture(scope="session")
def whole_denoiser(tiny_source: Path) -> Path:
    """The fp32 denoiser of `tiny_source` as it is traced, before anything is hoisted out of it."""
    path = CACHE / "graphs" / "tiny" / "denoiser.onnx"
    with MAKING:
        if not is_newer(path, [tiny_source / "model_index.json", *(ROOT / "export").rglob("*.py")]):
            pytest.importorskip("torch")
            from export.families import open_model
            from export.variants import write_graph

            model = open_model(tiny_source)
            spec = next(spec for spec in model.specs("fp32") if spec.name == "denoiser")
            write_graph(model, spec, path.name, path.parent)
    return path


@pytest.fixture(scope="session")
def emoji_bundle() -> Path:
    """The bundle of models/emoji, fp32 and fp16. The model ships with the repository: without it the test fails."""
    return exported(ROOT / "models" / "emoji")


@pytest.fixture(scope="session")
def lora_bundle(tiny_source: Path) -> Path:
    """The bundle of `tiny_source` whose denoiser takes LoRAs of rank 8 in all with each request."""
    return exported(tiny_source, "tiny-loras", ("dpmpp_2m", "euler"), lora_rank=8)


@pytest.fixture(scope="session")
def drawn_source() -> Path:
    """`tiny_source` with a small decoder of its own for previews, in fp32 and fp16 alike."""
    folder = CACHE / "models" / "drawn"
    makers = [ROOT / "tests" / f"tiny_{name}.py" for name in ("model", "vae")]
    with MAKING:
        if not is_newer(folder / "taesd" / "config.json", makers):
            pytest.importorskip("torch")
            from tests.tiny_model import save_tiny_model
            from tests.tiny_vae import save_tiny_vae

            save_tiny_model(folder)
            save_tiny_vae(folder / "taesd")
    return folder


@pytest.fixture(scope="session")
def drawn_bundle(drawn_source: Path) -> Path:
    """The bundle of `drawn_source`."""
    return exported(drawn_source, schedulers=("dpmpp_2m", "euler"))


@pytest.fixture(scope="session")
def zimage_source() -> Path:
    """A Z-Image of random weights in diffusers layout."""
    folder = CACHE / "models" / "zimage"
    makers = [ROOT / "tests" / f"tiny_{name}.py" for name in ("zimage", "qwen")]
    with MAKING:
        if not is_newer(folder / "model_index.json", makers):
            pytest.importorskip("torch")
            from tests.tiny_zimage import save_tiny_zimage

            shutil.rmtree(folder, ignore_errors=True)
            save_tiny_zimage(folder)
    return folder


@pytest.fixture(scope="session")
def zimage_bundle(zimage_source: Path) -> Path:
    """The bundle of `zimage_source`: the rows of a batch have captions of one padded length."""
    return exported(zimage_source, schedulers=FLOW)


@pytest.fixture(scope="session")
def zimage_masked(zimage_source: Path) -> Path:
    """The same with a mask of captions."""
    return exported(zimage_source, "zimage-masked", FLOW, masked=True)


def exported(model: Path, name: str = "", schedulers: Sequence[str] = SCHEDULERS, **options: Any) -> Path:
    """The model's bundle in .cache/tests; skips the test where there is no fresh one and no torch to make it.

    name: of the bundle, where it is not the model's own with SCHEDULERS and without options of export_bundle.
    """
    if not (model / "model_index.json").is_file():
        pytest.fail(f"{model} is no model in diffusers layout; the checkout is not whole")
    folder = CACHE / "bundles" / (name or model.name)
    sources = [*model.rglob("*.json"), *model.rglob("*.safetensors"), *(ROOT / "export").rglob("*.py")]
    sources += [
        ROOT / "engine" / f"{name}.py"
        for name in ("binding", "bundle", "hoist", "schema", "shapes", "tablefile", "tokens", "wiring")
    ]
    with MAKING:
        if not is_newer(folder / "bundle.json", sources):
            if importlib.util.find_spec("torch") is None:
                pytest.skip(f"no fresh bundle of {model.name}, and no torch to export one: run `make test` first")
            import torch

            from export.bundle import export_bundle

            torch.set_num_threads(1)  # sums in one order, whichever test asks first
            export_bundle(model, folder, schedulers=schedulers, cache=CACHE / "tables", **options)
    return folder


def is_newer(made: Path, sources: Iterable[Path]) -> bool:
    """Whether a file exists and nothing it was made from changed after it."""
    return made.is_file() and all(source.stat().st_mtime <= made.stat().st_mtime for source in sources)
