"""A bundle with plans for a fake TensorRT and a fake GPU, built in this process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.bundle import load_bundle
from engine.plan import Options, engines_folder
from engine.profiles import parse_profiles
from engine.publish import publish_info
from engine.site import site_of
from engine.target import parse_target
from engine.verdict import Verdict
from engine.wanted import Asked, plan_jobs
from engine.worker import build_plan
from runtime.backends import tensorrt, tensorrt_rtx
from runtime.backends.base import BackendOptions
from tests import fake_cuda, fake_tensorrt
from tests.toy_bundle import write_bundle

FLAVOURS = {"8.6": tensorrt, "10": tensorrt, "11": tensorrt, "rtx": tensorrt_rtx}


class Bench:
    """A flavour, a GPU, and a bundle with plans for them, built in this process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, profiles: tuple[str, ...] = ("128@2",)
    ) -> None:
        self.module = fake_tensorrt.install(monkeypatch, fake_tensorrt.fake(kind))
        self.cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(capability=(8, 9) if kind == "rtx" else (9, 0)))
        self.folder, self.backend = write_bundle(folder / "toy"), FLAVOURS[kind]
        self.build(*profiles)

    def build(self, *profiles: str) -> None:
        bundle = load_bundle(self.folder)
        site = site_of(parse_target(self.module.__name__))
        self.plans = engines_folder(self.folder) / site.target.folder
        sets = tuple((profile,) for profile in parse_profiles(profiles, bundle))
        asked = Asked(
            folder=self.folder, bundle=bundle, site=site, sets=sets, precision="fp16", options=Options(), parts=None,
            cores=1, memory_bytes=None,
        )  # fmt: skip
        for job in (job for one in sets for graph in asked.graphs for job in plan_jobs(asked, one, graph)):
            info = msgspec.structs.replace(build_plan(job), verdict=Verdict(status="passed"))
            publish_info(Path(job.plan), info)

    def open(self, **options):
        return self.backend.open_backend(self.folder, load_bundle(self.folder), BackendOptions(**options))
