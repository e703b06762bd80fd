"""The encoder is diffusers' own; the preview is the best linear map; the solver keeps what a mask keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from export.pictures import Encoder, Preview, fit_preview, smooth_latents
from export.solver import COLUMNS, ROWS
from export.solver_graph import Solver, Start

SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def vae(tiny_source: Path):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(tiny_source / "vae").eval()


def test_the_encoder_draws_what_diffusers_draws(vae, monkeypatch) -> None:
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32))
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: noise)
    prepared = VaeImageProcessor(vae_scale_factor=8).preprocess([Image.fromarray(one) for one in pixels])
    with torch.inference_mode():
        expected = vae.encode(prepared).latent_dist.sample() * vae.config.scaling_factor
        actual = Encoder(vae, torch.float32)(torch.from_numpy(pixels), noise)
        none = Encoder(vae, torch.float32)(torch.from_numpy(pixels), torch.zeros_like(noise))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(none, expected, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("graph", "wire", "side"), [("encoder", "image", "input"), ("preview", "preview", "output")])
def test_bytes_are_at_the_border_only(tiny_bundle: Path, precision: str, graph: str, wire: str, side: str) -> None:
    """TensorRT takes uint8 where a cast is the first or the last thing, and nowhere else."""
    model = onnx.shape_inference.infer_shapes(onnx.load(tiny_bundle / "graphs" / precision / f"{graph}.onnx"))
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    assert [name for name, kind in kinds.items() if kind == onnx.TensorProto.UINT8] == [wire]
    touching = [node.op_type for node in model.graph.node if wire in getattr(node, side)]
    assert touching == ["Cast"]


@pytest.mark.parametrize("graph", ["encoder", "solver", "start", "preview"])
def test_no_operator_is_one_that_a_tensorrt_lacks(tiny_bundle: Path, graph: str) -> None:
    counts = Counter(node.op_type for node in onnx.load(tiny_bundle / "graphs" / "fp16" / f"{graph}.onnx").graph.node)
    assert not {"If", "Loop", "RandomNormal", "RandomNormalLike", "NonZero", "CumSum"} & set(counts)


def test_a_preview_is_nearer_to_the_decoder_than_any_plain_colour(vae) -> None:
    weights = fit_preview(vae)
    assert weights.shape == (5, 3)
    assert np.array_equal(weights, fit_preview(vae))
    latents = smooth_latents(4)
    with torch.inference_mode():
        images = torch.clamp(vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5, 0, 1) * 255
        wanted = F.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        shown = Preview(lambda: weights)(latents).float()
    assert shown.shape == wanted.shape
    miss = (shown - wanted).square().mean((0, 1, 2))
    assert (miss < (wanted - wanted.mean((0, 1, 2))).square().mean((0, 1, 2))).all()


def test_a_preview_is_fitted_when_it_first_runs_and_once() -> None:
    made: list[int] = []

    def fit() -> np.ndarray:
        made.append(1)
        return np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [0, 0, 0], [10.4, 300, -5]], np.float32)

    module = Preview(fit)
    assert not made
    latents = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1).expand(2, 4, 2, 3)
    shown = [module(latents) for _ in range(2)][1]
    assert (shown.shape, shown.dtype, len(made)) == ((2, 2, 3, 3), torch.uint8, 1)
    assert shown[0, 0, 0].tolist() == [11, 255, 4]


def table(**columns: float) -> torch.Tensor:
    rows = torch.zeros(1, ROWS, len(COLUMNS))
    for name, value in {"s": 1.0, **columns}.items():
        rows[:, :, COLUMNS.index(name)] = value
    return rows


def stepped(rows: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One solver step of one sample from latents of 3."""
    ids, pred, latents = torch.zeros(1, dtype=torch.int32), torch.full((1, *SHAPE), 0.7), torch.full((1, *SHAPE), 3.0)
    history = torch.zeros(1, 4, *SHAPE)
    x, *_ = Solver(torch.float32)(pred, latents, history, ids, rows, noise, torch.ones(1), ids, ids, ids, image, mask)
    return x[0]


NOISE = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 2, *SHAPE)).astype(np.float32))
IMAGE = torch.from_numpy(np.random.default_rng(3).standard_normal((1, *SHAPE)).astype(np.float32))
HALF = torch.ones(1, 1, 16, 16)
HALF[..., :8] = 0
ONES = torch.ones(1, 1, 16, 16)


def test_where_the_mask_is_1_every_bit_is_as_without_an_image() -> None:
    rows = table(a=0.9, d=0.3, c=0.1, j=1, u=0.5, v=2.0)
    plain = stepped(rows, torch.zeros_like(IMAGE), ONES, NOISE)
    for image in (IMAGE, torch.full_like(IMAGE, float("nan")), torch.full_like(IMAGE, float("inf"))):
        assert torch.equal(stepped(rows, image, ONES, NOISE), plain)
        assert torch.equal(stepped(rows, image, HALF, NOISE)[..., 8:], plain[..., 8:])


def test_where_the_mask_is_0_the_image_is_as_noisy_as_the_state() -> None:
    x = stepped(table(a=0.9, c=0.1, j=1, u=0.5, v=2.0), IMAGE, HALF, NOISE)
    torch.testing.assert_close(x[..., :8], (0.5 * IMAGE + 2 * NOISE[:, 0])[0, ..., :8])


def test_the_last_row_leaves_the_image_itself_whatever_the_noise() -> None:
    noise = NOISE.clone()
    noise[:, 0] = float("inf")
    x = stepped(table(a=0.9, c=0.1, j=1, u=1.0), IMAGE, HALF, noise)
    assert torch.isfinite(x).all()
    assert torch.equal(x[..., :8], IMAGE[0, ..., :8])


def test_a_row_that_pads_a_table_keeps_all_under_any_mask() -> None:
    assert (stepped(table(a=1.0), IMAGE, HALF, NOISE) == 3).all()


def test_between_0_and_1_a_mask_mixes() -> None:
    rows = table(a=1.0, u=1.0)
    x = stepped(rows, IMAGE, torch.full_like(ONES, 0.25), NOISE)
    torch.testing.assert_close(x, 0.25 * torch.full(SHAPE, 3.0) + 0.75 * IMAGE[0])


def test_a_start_without_an_image_takes_nothing_of_one() -> None:
    ids = torch.zeros(1, dtype=torch.int32)
    start = Start(torch.float32)
    for image in (IMAGE, torch.full_like(IMAGE, float("nan"))):
        assert torch.equal(start(table(c=2.0), NOISE, image, ids)[0], 2 * NOISE[:, 0])
    latents = start(table(a=0.5, c=2.0), NOISE, IMAGE, ids)[0]
    torch.testing.assert_close(latents, 0.5 * IMAGE + 2 * NOISE[:, 0])
