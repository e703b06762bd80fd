"""An fp16 graph that computes in fp32 gives what fp32 gives, in fp16 at its borders."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engine.rewrite import float32_tensors, wire_types
from engine.widen import float32_from_float16
from tests.toy_bundle import LATENTS, decoder_model, denoiser_model

ort = pytest.importorskip("onnxruntime")


def run(made: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_it_computes_in_fp32_between_its_borders():
    made, wires = denoiser_model(0.3), wire_types(denoiser_model())
    feeds = {LATENTS.name: np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)}
    (rounded,) = run(made, feeds)
    float32_from_float16(made)
    onnx.checker.check_model(made, full_check=True)
    (found,) = run(made, feeds)
    assert wire_types(made) == wires
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, rounded, rtol=4e-3, atol=4e-3)
    assert {"weighted", "normed", "sample_wide"} <= float32_tensors(made)


def test_inputs_are_cast_too():
    made = decoder_model()
    feeds = {"sample": np.linspace(0, 250, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8).astype(np.float16)}
    (expected,) = run(decoder_model(), feeds)
    float32_from_float16(made)
    onnx.checker.check_model(made, full_check=True)
    assert np.array_equal(run(made, feeds)[0], expected)
