"""What a run holds at most is found wherever it is: between modules, in a fused attention, behind a mask."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from engine.binding import Precision
from engine.bundle import load_bundle
from engine.errors import ExportMismatch
from export import reference
from export.bundle import export_bundle
from export.families import open_model
from export.graph import GraphSpec, run_module
from export.largest import Extreme, Ranges, check_range, magnitude
from tests.export.test_vae_fold import inflated

SCHEDULERS = ("euler", "dpmpp_2m")


def spec(module: nn.Module, precision: Precision = "fp16") -> GraphSpec:
    return GraphSpec(
        name="decoder", stage="final", module=module, precision=precision, inputs=(), outputs=(), carried={}
    )


def extreme(module: nn.Module, *inputs: Tensor) -> Extreme:
    ranges = Ranges()
    with ranges.watch(spec(module)), torch.inference_mode():
        module(*inputs)
    return ranges.found["decoder"]


class Sum(nn.Module):
    """Whose largest value is between its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) * 50 - 5000
        return y / 1000


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def test_a_value_between_modules_counts() -> None:
    assert extreme(nn.Sequential(Sum(), nn.Identity()), torch.ones(3)) == Extreme(4950.0, "0")


def test_the_module_that_holds_it_is_named() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    with torch.no_grad():
        module[1][0].weight.fill_(1e3)
    assert extreme(module, torch.ones(2, 4)).module == "1.0"


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_the_scores_of_a_fused_attention_count(monkeypatch, scale: float | None, key_heads: int) -> None:
    monkeypatch.setattr("export.largest.BLOCK", 64)  # several blocks
    q, k, v = (torch.randn(2, heads, 9, 8) * 10 for heads in (4, key_heads, key_heads))
    scores = q @ k.transpose(-1, -2) * (8**-0.5 if scale is None else scale)
    assert scores.abs().max() > q.abs().max()
    watched = extreme(Attention(), q, k.expand(2, 4, 9, 8), v.expand(2, 4, 9, 8), scale)
    torch.testing.assert_close(torch.tensor(watched.value), scores.abs().max())


def test_scores_that_a_bound_leaves_no_room_are_not_computed(monkeypatch) -> None:
    monkeypatch.setattr("export.largest.BLOCK", 0)  # dividing by it is what would fail
    q = torch.ones(1, 1, 4, 4)
    ranges = Ranges()
    ranges.found["decoder"] = Extreme(2.0, "before")
    with ranges.watch(spec(Attention())):
        Attention()(q, q, q)
    assert ranges.found["decoder"] == Extreme(2.0, "before")


def test_minus_infinity_in_a_mask_is_no_value_and_every_other_is() -> None:
    lowest = torch.finfo(torch.float32).min
    assert magnitude(torch.tensor([lowest, -3.0, 2.0])) == 3
    assert magnitude(torch.tensor([-math.inf, -3.0, 2.0])) == 3
    assert magnitude(torch.tensor([math.inf, 0.0])) == math.inf
    assert math.isnan(magnitude(torch.tensor([math.nan, 0.0])))
    assert extreme(Sum(), torch.tensor([math.nan])).value == math.inf


def test_runs_of_a_graph_add_up_and_hooks_go_again() -> None:
    module, ranges = Sum(), Ranges()
    for size in (1.0, 200.0, 1.0):
        with ranges.watch(spec(module)):
            module(torch.full((2,), size))
    assert ranges.values() == {"decoder": 10000.0}
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


@pytest.mark.parametrize("kind", ["diffusers", "transformers"])
def test_of_a_norm_that_squares_in_fp32_what_comes_out_counts(kind: str) -> None:
    """A value of 1000 fits fp16, and its square, which no fp16 holds, is never in it."""
    if kind == "diffusers":
        from diffusers.models.normalization import RMSNorm as Norm
    else:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm as Norm
    norm, ranges, x = Norm(4, eps=1e-6), Ranges(), torch.full((2, 4), 1000.0)
    norm.weight.data.fill_(3)
    with ranges.watch(spec(nn.Sequential(norm))):
        norm(x)
    assert ranges.values() == {"decoder": 3.0}


def test_a_graph_that_stays_in_fp32_is_not_watched_and_infinity_has_a_number() -> None:
    """The preview's weights are loaded within its first run: memory that is not written yet holds anything."""
    ranges = Ranges()
    with ranges.watch(dataclasses.replace(spec(Sum(), "fp32"), exact=True)):
        torch.full((2,), math.inf)
    assert not ranges.values()
    with ranges.watch(spec(Sum())):
        torch.full((2,), math.inf)
    assert ranges.values() == {"decoder": 1e38}


@pytest.mark.parametrize(("value", "precision", "told"), [
    (2e4, "fp16", ""), (4e4, "fp16", "4e+04 at mid"), (4e4, "fp32", ""), (1e6, "fp32", ""),
])  # fmt: skip
def test_what_comes_near_the_end_of_fp16_is_told(caplog, value: float, precision: Precision, told: str) -> None:
    with caplog.at_level(logging.WARNING, "zturbo.export"):
        check_range({"decoder": Extreme(value, "mid")}, [spec(nn.Identity(), precision)])
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


@pytest.mark.parametrize("value", [7e4, math.inf])
def test_what_is_beyond_fp16_is_refused(value: float) -> None:
    with pytest.raises(ExportMismatch, match=r"decoder\.onnx \(fp16\), mid: .* 65504.*--precision fp32"):
        check_range({"decoder": Extreme(value, "mid")}, [spec(nn.Identity())])


@pytest.fixture
def overflowing(tiny_source: Path, tmp_path: Path) -> Path:
    """The tiny model with a VAE whose stream is 1e5 times as large; its config says that it overflows."""
    folder = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    inflated(AutoencoderKL.from_pretrained(folder / "vae"), 1e5).save_pretrained(folder / "vae")
    return folder


@pytest.mark.slow
def test_an_export_of_a_vae_that_overflows_holds_in_fp16_what_it_needs(overflowing: Path, tmp_path: Path) -> None:
    bundle = export_bundle(overflowing, tmp_path / "out" / "tiny", precisions=("fp16",), schedulers=SCHEDULERS)
    largest = bundle.reference.largest
    assert 1e3 < largest["decoder"] < 3e4  # 2⁻⁷ of some 9e5
    assert set(largest) == {"conditioning", "encoder", "denoiser", "decoder"}
    for case in bundle.reference.cases:
        assert 1e-5 < case.fp16_error["decoder"]["images"] < 1e-2
    model = open_model(overflowing)
    spec_ = next(spec for spec in model.specs("fp16") if spec.name == "decoder")
    inputs = reference.seeded_inputs(spec_.inputs, reference.cases(model)["small"], 0, model)
    assert run_module(spec_, inputs)["images"].std() > 1


def test_one_that_does_not_say_so_is_refused_with_the_remedy(overflowing: Path, tmp_path: Path) -> None:
    path = overflowing / "vae" / "config.json"
    path.write_text(path.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    with pytest.raises(ExportMismatch, match=r"\(fp16\), vae\.(en|de)coder.*force_upcast"):
        export_bundle(overflowing, tmp_path / "out" / "tiny", precisions=("fp16",), schedulers=SCHEDULERS)
    assert not (tmp_path / "out" / "tiny").exists()


def test_a_bundle_keeps_the_figures(tiny_bundle: Path) -> None:
    largest = load_bundle(tiny_bundle).reference.largest
    assert set(largest) == {"conditioning", "encoder", "denoiser", "decoder"}
    assert all(0 < value < 3e4 for value in largest.values())
