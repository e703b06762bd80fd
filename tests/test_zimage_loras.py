"""LoRAs of Z-Image, fused and as inputs, from files in each dialect, against diffusers' own pipeline and loader.

What diffusers cannot read itself (an alpha beside its own names, peft's names of a bare transformer) is the same LoRA
as one that it can, kohya's file with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from diffusers import ZImageTransformer2DModel
from safetensors.torch import save_file

from engine.bundle import load_bundle
from engine.errors import LoraInvalid, OptionInvalid
from export.bundle import export_bundle
from export.families import FusedLoraFile, ModelOptions, open_model
from export.lora import fuse, read_loras
from export.zimage_lora import lora_inputs, place_of
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.conftest import CACHE, FLOW, exported
from tests.lora_files import Pair, load, random_pairs, write
from tests.zimage_pipeline import CHANNELS, Theirs

TOLERANCE = 1e-4
"""Relative: fp32 through a few steps, in another order of sums."""
STEPS = 3
RANK = 8
ENDS = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "adaLN_modulation.0")
Names = Callable[[Pair], tuple[str, str, str]]


def kohya(pair: Pair) -> tuple[str, str, str]:
    stem = f"lora_unet_{pair.path.replace('.', '_')}"
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def named(stem: str, down: str = "lora_A", up: str = "lora_B", last: str = ".weight") -> Names:
    """A dialect with the module's own path behind a stem."""

    def names(pair: Pair) -> tuple[str, str, str]:
        return f"{stem}{pair.path}.{down}{last}", f"{stem}{pair.path}.{up}{last}", f"{stem}{pair.path}.alpha"

    return names


DIALECTS: dict[str, Names] = {
    "kohya": kohya,
    "diffusers": named("transformer."),
    "original": named("diffusion_model."),
    "original down": named("diffusion_model.", "lora_down", "lora_up"),
    "peft": named("base_model.model."),
    "adapter": named("base_model.model.", last=".default.weight"),
    "older": named("transformer.", "lora.down", "lora.up"),
}


@pytest.fixture(scope="module")
def transformer(zimage_source: Path) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel.from_pretrained(zimage_source / "transformer")


@pytest.fixture(scope="module")
def pairs(transformer: ZImageTransformer2DModel) -> list[list[Pair]]:
    """Two LoRAs of every linear layer of every block, of ranks 4 and 3."""
    blocks = ("layers.", "noise_refiner.", "context_refiner.")
    paths = [name for name, _ in transformer.named_modules() if name.startswith(blocks) and name.endswith(ENDS)]
    assert len(paths) == 5 * 8 + 2 * 7
    return [random_pairs("transformer", transformer, paths, rank=rank, seed=rank, size=0.15) for rank in (4, 3)]


@pytest.fixture(scope="module")
def opened(zimage_source: Path) -> Iterator[dict[str, Pipeline]]:
    folder = exported(zimage_source, "zimage-loras", FLOW, lora_rank=RANK)
    pipelines = {name: Pipeline.load(folder, name, precision="fp32", device="cpu", threads=1)
                 for name in ("onnxruntime", "pytorch")}  # fmt: skip
    yield pipelines
    for pipeline in pipelines.values():
        pipeline.close()


def asked(**options: object) -> Request:
    latents = np.random.default_rng(0).standard_normal((1, CHANNELS, 16, 16)).astype(np.float32)
    return Request(
        prompt="a cat", latents=latents, height=128, width=128, num_inference_steps=STEPS, guidance_scale=0.0, **options
    )  # fmt: skip


def expected(source: Path, loras: list[tuple[Path, float]]) -> np.ndarray:
    """The latents at the end of diffusers' pipeline with its own loader."""
    theirs = Theirs(source)
    load(theirs.pipeline, loras)
    return theirs.latents([asked()])


def final(pipeline: Pipeline, **options: object) -> np.ndarray:
    found = []
    pipeline.generate(asked(**options), lambda step: found.append(step.latents()))
    return found[-1]


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_inputs_are_diffusers(
    zimage_source: Path, opened: dict[str, Pipeline], pairs: list[list[Pair]], tmp_path: Path, dialect: str, alpha: bool
) -> None:
    known = write(tmp_path / "known.safetensors", pairs[0], kohya, alpha=alpha)
    wanted = expected(zimage_source, [(known, 0.8)])
    path = write(tmp_path / "x.safetensors", pairs[0], DIALECTS[dialect], alpha=alpha)
    for pipeline in opened.values():
        assert difference(final(pipeline, loras=[(path, 0.8)]), wanted) <= TOLERANCE
        assert difference(final(pipeline), wanted) > 1e-2


@pytest.mark.parametrize(("dialect", "alpha"), [("diffusers", False), ("original", False), ("original down", True)])
def test_diffusers_reads_these_files_itself(
    zimage_source: Path, opened: dict[str, Pipeline], pairs: list[list[Pair]], tmp_path: Path, dialect: str, alpha: bool
) -> None:
    path = write(tmp_path / "x.safetensors", pairs[0], DIALECTS[dialect], alpha=alpha)
    wanted = expected(zimage_source, [(path, 0.8)])
    assert difference(final(opened["onnxruntime"], loras=[(path, 0.8)]), wanted) <= TOLERANCE


def test_the_original_models_out_is_our_to_out(
    zimage_source: Path, opened: dict[str, Pipeline], pairs: list[list[Pair]], tmp_path: Path
) -> None:
    def names(pair: Pair) -> tuple[str, ...]:
        return tuple(key.replace("to_out.0", "out") for key in DIALECTS["original down"](pair))

    path = write(tmp_path / "x.safetensors", pairs[0], names, alpha=True)
    wanted = expected(zimage_source, [(path, 0.5)])
    assert difference(final(opened["onnxruntime"], loras=[(path, 0.5)]), wanted) <= TOLERANCE


def test_two_at_once(zimage_source: Path, opened: dict[str, Pipeline], pairs: list[list[Pair]], tmp_path: Path) -> None:
    """Ranks of 4 and 3, one with less than nothing of it."""
    paths = [write(tmp_path / f"{k}.safetensors", own, kohya) for k, own in enumerate(pairs)]
    loras = [(paths[0], 0.6), (paths[1], -1.2)]
    wanted = expected(zimage_source, loras)
    for pipeline in opened.values():
        assert difference(final(pipeline, loras=loras), wanted) <= TOLERANCE


def test_without_any_it_is_the_bundle_that_takes_none(opened: dict[str, Pipeline], zimage_bundle: Path) -> None:
    with Pipeline.load(zimage_bundle, "onnxruntime", precision="fp32", threads=1) as plain:
        assert difference(final(opened["onnxruntime"]), final(plain)) <= 1e-6


def test_the_captions_embedding_stays_hoisted(zimage_source: Path) -> None:
    """The caption's two blocks take LoRAs too, so they are in the loop: 0.1 % of its products at 1024² px. What the
    first of them makes of the embedding without a LoRA is hoisted as well.
    """
    bundle = load_bundle(exported(zimage_source, "zimage-loras", FLOW, lora_rank=RANK))
    graphs = {graph.name: graph for graph in bundle.graphs("fp16")}
    assert [binding.name for binding in graphs["prologue"].inputs] == ["encoder_hidden_states", "token_weights"]
    read = [binding.name for binding in graphs["denoiser"].inputs]
    made = [binding.name for binding in graphs["prologue"].outputs]
    assert read == ["sample", "timestep", "lora", *made]
    assert len(made) == 5
    assert bundle.lora_inputs is not None
    assert len(bundle.lora_inputs.layers) == 5 * 8 + 2 * 7
    assert bundle.reference.loop is not None
    assert bundle.reference.loop.fp16_error["latents"] < 2e-3


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_fused_weights_are_diffusers(
    zimage_source: Path, pairs: list[list[Pair]], tmp_path: Path, dialect: str, alpha: bool
) -> None:
    """To the last bits: one product and one sum for each weight."""
    known = write(tmp_path / "known.safetensors", pairs[0], kohya, alpha=alpha)
    path = write(tmp_path / "x.safetensors", pairs[0], DIALECTS[dialect], alpha=alpha)
    theirs, ours = (Theirs(zimage_source).pipeline for _ in range(2))
    theirs.load_lora_weights(known.parent, weight_name=known.name, adapter_name="one")
    theirs.set_adapters(["one"], [0.7])
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    fuse(ours.transformer, "transformer", read_loras([FusedLoraFile(path, 0.7)], ["transformer"], place_of), place_of)
    wanted = dict(theirs.transformer.named_parameters())
    for key, value in ours.transformer.named_parameters():
        torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_layers_outside_of_blocks_can_be_fused(
    zimage_source: Path, transformer: ZImageTransformer2DModel, tmp_path: Path
) -> None:
    paths = ("cap_embedder.1", "all_x_embedder.2-1", "all_final_layer.2-1.linear", "t_embedder.mlp.0")
    made = random_pairs("transformer", transformer, paths)
    path = write(tmp_path / "x.safetensors", made, DIALECTS["original"])
    wanted = expected(zimage_source, [(path, 0.5)])
    out = tmp_path / "out"
    export_bundle(
        zimage_source, out, precisions=("fp32",), schedulers=FLOW, cache=CACHE / "tables", loras=[(path, 0.5)]
    )
    for backend in ("onnxruntime", "pytorch"):
        with Pipeline.load(out, backend, precision="fp32", device="cpu", threads=1) as pipeline:
            assert difference(final(pipeline), wanted) <= TOLERANCE


@pytest.mark.parametrize(("stem", "message"), [
    ("transformer.layers.9.attention.to_q", "a layer that this model has not"),
    ("layers.0.attention", "a Attention|a ModuleList|a layer that this model has not"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", "no single layer of the transformer"),
    ("text_encoder.layers.0.mlp.up_proj", "a layer that this model has not"),
    ("transformer.layers.0.attention.to_q_proj", "a layer that this model has not"),
])  # fmt: skip
def test_what_is_not_for_this_model_is_refused_by_its_key(
    zimage_source: Path, tmp_path: Path, stem: str, message: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"{stem}.lora_A.weight": torch.zeros(2, 96), f"{stem}.lora_B.weight": torch.zeros(96, 2)}, path)
    model_options = ModelOptions(loras=(FusedLoraFile(path, 1.0),))
    with pytest.raises(LoraInvalid, match=rf"x\.safetensors.*{stem}.*(?:{message})"):
        open_model(zimage_source, model_options).specs("fp32", ("denoiser",))


def test_queries_keys_and_values_in_one_are_refused(zimage_source: Path, tmp_path: Path) -> None:
    stem, path = "diffusion_model.layers.0.attention.qkv", tmp_path / "x.safetensors"
    save_file({f"{stem}.lora.down.weight": torch.zeros(2, 96), f"{stem}.lora.up.weight": torch.zeros(288, 2)}, path)
    with pytest.raises(LoraInvalid, match="no single layer"):
        open_model(zimage_source, ModelOptions(loras=(FusedLoraFile(path, 1.0),)))


def test_a_rank_beyond_what_there_is_is_refused(zimage_source: Path) -> None:
    with pytest.raises(OptionInvalid, match="129; allowed: 1 to 128"):
        open_model(zimage_source, ModelOptions(lora_rank=129))


def test_the_wire_at_the_published_size() -> None:
    """34 blocks: 7 layers in each, and another where the time modulates it. A rank of 16 is 0.1 GB a row in fp16."""
    from export.architectures import ZIMAGE

    inputs = lora_inputs({**ZIMAGE, "_class_name": "ZImageTransformer2DModel"}, 16)
    assert len(inputs.layers) == 34 * 7 + 32
    assert inputs.size == 34 * (4 * 2 * 3840 + 3 * (3840 + 10240)) + 32 * (256 + 4 * 3840)
