"""A kind of TensorRT that nobody has heard of: one object makes it a target that builds, and is found again."""

from __future__ import annotations

import msgspec
import pytest

from engine.build import build_engines
from engine.bundle import load_bundle
from engine.catalog import find_plans
from engine.context import Engines
from engine.cuda import Cuda
from engine.device import Device
from engine.dialect import FLAVOURS, Flavour, load_dialect
from engine.machine import machine_of
from engine.plan import engines_folder
from engine.target import Target, parse_target, target_from_folder
from engine.worker import build_plan
from tests import fake_cuda, fake_tensorrt
from tests.engine.conftest import passed
from tests.toy_bundle import write_bundle


@pytest.fixture(params=[("10", False), ("rtx", True)], ids=["for the GPU at hand", "portable"])
def flavour(request, monkeypatch) -> Flavour:
    kind, portable = request.param
    made_up = Flavour(name="made_up", title="Made Up", module="made_up_trt", extra="made-up", portable=portable)
    monkeypatch.setitem(FLAVOURS, made_up.name, made_up)
    module = fake_tensorrt.fake(kind)
    module.__name__ = made_up.module
    fake_tensorrt.install(monkeypatch, module)
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    return made_up


def test_one_object_adds_a_flavour(flavour, tmp_path, monkeypatch, gate):
    gate(passed)
    monkeypatch.setattr("engine.build.run_jobs", lambda jobs, *_: ((job, build_plan(job)) for job in jobs))
    folder = write_bundle(tmp_path / "toy")
    infos = build_engines(folder, "made_up", ["128@2", "64@1-2"])
    assert {info.identity.flavour for info in infos} == {"made_up"}

    bundle, cuda = load_bundle(folder), Cuda(0, extra=flavour.extra)
    dialect, here = load_dialect("made_up"), machine_of(cuda)
    capabilities = () if flavour.portable else (here.compute_capability,)
    target = Target(flavour="made_up", version=dialect.version, capabilities=capabilities)
    (found,) = (path.name for path in engines_folder(folder).iterdir() if path.is_dir())
    assert target_from_folder(found) == target
    assert (found, str(target)) == (target.folder, "made_up")
    assert parse_target("made_up").flavour == "made_up"

    if flavour.portable:
        here = msgspec.structs.replace(here, compute_capability="8.9")
    catalog = find_plans(folder, bundle, "fp16", dialect, here)
    assert sorted(plans.name for plans in catalog.sets) == ["128@2", "64@1-2"]
    engines = Engines(dialect, Device(cuda), catalog.sets[0].read())
    assert engines.scratch_bytes == 4096
    engines.close()
