"""A plan all of whose axes are constants is bound without setting a shape; one of another shape is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.context import Engines
from engine.cuda import Cuda
from engine.device import Device
from engine.dialect import load_dialect
from engine.errors import ExecutionFailed
from engine.rewrite import fix_axes
from tests import fake_cuda, fake_tensorrt
from tests.fake_engine import Context
from tests.toy_bundle import LATENTS, SAMPLE, denoiser_model

SHAPE = (2, 4, 8, 8)


@pytest.fixture
def engines(monkeypatch) -> Engines:
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    model, shapes = denoiser_model(), {LATENTS.name: (SHAPE,) * 3}
    assert fix_axes(model, [shapes]) == 3
    head = {
        "types": {LATENTS.name: "FLOAT", SAMPLE.name: "HALF"},
        "profiles": [shapes],
        "sharing": True,
        "version": fake_tensorrt.VERSIONS["10"],
    }
    raw = json.dumps(head).encode() + b"\n" + model.SerializeToString()
    return Engines(load_dialect("tensorrt"), Device(Cuda(0, extra="tensorrt")), [("denoiser", (1, 1), raw)])


def bound(engines: Engines, shape: tuple[int, ...]):
    device = engines._device
    wires = {LATENTS.name: device.tensor(shape, "float32"), SAMPLE.name: device.tensor(shape, "float16")}
    wires[LATENTS.name].write(np.ones(shape, np.float32))
    return wires, engines.bind("denoiser", wires)


def test_nothing_is_set_that_is_constant(engines, monkeypatch):
    monkeypatch.setattr(Context, "set_input_shape", lambda *_: pytest.fail("a constant was set"))
    wires, launch = bound(engines, SHAPE)
    launch()
    engines._device.synchronize()
    assert np.ptp(wires[SAMPLE.name].read()[:, 0]) < 1e-3
    engines.close()


def test_another_shape_is_refused(engines):
    with pytest.raises(ExecutionFailed, match="was refused"):
        bound(engines, (1, 4, 8, 8))
    engines.close()
