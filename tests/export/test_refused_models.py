"""Models that are not supported: each kind is refused with what was found and what is supported, and leaves nothing.

Single checkpoints are in test_refused_checkpoints.py, damaged and hostile files in test_hostile.py and
test_untrusted.py, LoRA files in tests/engine/test_lorafile.py, schedulers one by one in test_scheduler_page.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from diffusers import (
    AutoencoderTiny,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from export.families import open_model
from tests.changed_models import Change, also, both, edit, made, refused, renamed, saved, without
from tests.family_pipelines import family_source
from tests.tiny_families import text_config, vae
from zturbo.cli import app

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SUPPORTED = "StableDiffusionPipeline, LatentConsistencyModelPipeline, StableDiffusionXLPipeline"


def without_ids(folder: Path) -> None:
    """A text encoder with fewer embeddings than its tokenizer has ids."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    config = text_config(
        tokenizer, vocab_size=len(tokenizer) - 2, bos_token_id=1, eos_token_id=2, pad_token_id=2, hidden_size=32
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def sentencepiece(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"a vocabulary of another kind")


def variants(folder: Path) -> None:
    for name in ("fp16", "ema"):
        shutil.copy(folder / WEIGHTS, folder / f"unet/diffusion_pytorch_model.{name}.safetensors")
    (folder / WEIGHTS).unlink()


PIPELINES = {
    "StableDiffusionInpaintPipeline": "which inpaints",
    "StableDiffusionXLInpaintPipeline": "which inpaints",
    "StableDiffusionImg2ImgPipeline": "begins with a picture",
    "StableDiffusionXLImg2ImgPipeline": "begins with a picture",
    "StableDiffusionControlNetPipeline": "further picture",
    "StableDiffusionXLControlNetInpaintPipeline": "further picture",
    "StableDiffusionXLAdapterPipeline": "further picture",
    "StableDiffusionGLIGENPipeline": "further picture",
    "StableDiffusionInstructPix2PixPipeline": "beside the prompt",
    "StableDiffusionUpscalePipeline": "beside the prompt",
    "StableDiffusionDepth2ImgPipeline": "beside the prompt",
    "StableVideoDiffusionPipeline": "videos",
    "AnimateDiffPipeline": "videos",
    "StableDiffusion3Pipeline": "transformer",
    "FluxPipeline": "transformer",
    "PixArtAlphaPipeline": "transformer",
    "PixArtSigmaPipeline": "transformer",
    "SanaPipeline": "transformer",
    "HunyuanDiTPipeline": "transformer",
    "KandinskyV22Pipeline": "other text encoders",
    "KolorsPipeline": "other text encoders",
    "IFPipeline": "other text encoders",
    "StableCascadeCombinedPipeline": "other text encoders",
    "OnnxStableDiffusionPipeline": "another library",
    "FlaxStableDiffusionPipeline": "another library",
    "DiffusionPipeline": "'DiffusionPipeline'",
    "": "''",
}


@pytest.fixture
def tiny(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_source, tmp_path / "model"))


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_other_kinds(tiny, name):
    edit(INDEX, _class_name=name)(tiny)
    error = refused(tiny, PIPELINES[name], SUPPORTED)
    assert error.subject == str(tiny / INDEX)
    assert repr(name) in error.actual


@pytest.mark.parametrize(
    ("values", "actual", "allowed"),
    [
        ({"_class_name": None}, "_class_name None", SUPPORTED),
        ({"_class_name": 3}, "_class_name 3", SUPPORTED),
        ({"_class_name": ["pipeline", "MyPipeline"]}, "'_class_name': .*MyPipeline", "plain settings"),
        ({"custom_pipelines": {"a": "b"}}, "custom_pipelines, which asks for code", "a config that diffusers"),
        ({"unet": ["my_library", "MyUNet"]}, "'unet': .*my_library", "components of diffusers"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet of class ControlNetModel", "unet, vae"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "transformer of class Flux", "unet, vae"),
        ({"prior": ["diffusers", "PriorTransformer"]}, "prior of class Prior", "unet, vae"),
        ({"motion_adapter": ["diffusers", "MotionAdapter"]}, "motion_adapter", "unet, vae"),
        ({"unet": ["diffusers", "UNetMotionModel"]}, "unet of class UNetMotionModel", "UNet2DConditionModel"),
        ({"vae": ["diffusers", "AutoencoderKLTemporalDecoder"]}, "vae of class", "AutoencoderKL"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae of class", "AutoencoderKL"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder of class T5", "CLIPTextModel"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "text_encoder_2", "unet, vae"),
        ({"text_encoder_3": ["transformers", "T5EncoderModel"]}, "text_encoder_3", "unet, vae"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "tokenizer of class T5", "CLIPTokenizer"),
    ],
)
def test_indexes_that_name_what_no_family_has(tiny, values, actual, allowed):
    edit(INDEX, **values)(tiny)
    assert refused(tiny, actual, allowed).subject == str(tiny / INDEX)


KINDS: dict[str, tuple[Change, str, str]] = {
    "inpainting": (made(in_channels=9), "inpainting UNet, which takes 9 channels", "takes 4"),
    "pix2pix": (made(in_channels=8), "a UNet of 8 to 4 channels", "the VAE's 4"),
    "depth": (made(in_channels=5), "a UNet of 5 to 4 channels", "the VAE's 4"),
    "learned variance": (made(out_channels=8), "a UNet of 4 to 8 channels", "the VAE's 4"),
    "upscaler": (made(in_channels=7, num_class_embeds=1000), "num_class_embeds 1000", "no num_class_embeds"),
    "classes": (made(class_embed_type="timestep"), "class beside the prompt", "no class_embed_type"),
    "ip-adapter": (edit(UNET, encoder_hid_dim_type="ip_image_proj"), "'ip_image_proj'", "no encoder_hid_dim_type"),
    "projection": (made(encoder_hid_dim=16, encoder_hid_dim_type="text_proj"), "'text_proj'", "no encoder_hid"),
    "two prompts": (made(dual_cross_attention=True), "two prompts at once", "no dual"),
    "text added": (made(addition_embed_type="text"), "added embeddings .'text'", "none, or SDXL's"),
    "image added": (edit(UNET, addition_embed_type="image"), "added embeddings .'image'", "none, or SDXL's"),
    "sdxl's unet": (edit(UNET, addition_embed_type="text_time"), "added embeddings", "SD 1.x or 2.x"),
    "simple blocks": (
        edit(UNET, down_block_types=["DownBlock2D", "SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        "'SimpleCrossAttnDownBlock2D'", "DownBlock2D, CrossAttnDownBlock2D",
    ),
    "k blocks": (edit(UNET, up_block_types=["KUpBlock2D"] * 3), "'KUpBlock2D'", "UpBlock2D, CrossAttnUpBlock2D"),
    "mid block": (edit(UNET, mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "Simple", "UNetMidBlock2DCrossAttn"),
    "widths by block": (made(cross_attention_dim=(32, 32, 32)), r"cross_attention_dim \[32", "one number"),
    "another width": (made(cross_attention_dim=48), "cross_attention_dim 48", "32, the hidden_size"),
    "no size": (edit(UNET, sample_size=None), "sample_size None", "one number"),
    "two sizes": (edit(UNET, sample_size=[32, 48]), r"sample_size \[32, 48\]", "one number"),
    "unconditional": (
        saved("unet", lambda: UNet2DModel(32, 4, 4, block_out_channels=(32, 32, 32, 64))), "'UNet2DModel'",
        "UNet2DConditionModel",
    ),
    "controlnet as unet": (edit(UNET, _class_name="ControlNetModel"), "'ControlNetModel'", "UNet2DConditionModel"),
    "tiny vae": (saved("vae", AutoencoderTiny), "'AutoencoderTiny'", "AutoencoderKL"),
    "vq": (edit(VAE, _class_name="VQModel"), "'VQModel'", "AutoencoderKL"),
    "16 channels": (saved("vae", lambda: vae(latent_channels=16)), "4 to 4 channels", "the VAE's 16"),
    "normalized latents": (edit(VAE, latents_mean=[0.1] * 4, latents_std=[1.1] * 4), "latents_mean", "scaling_factor"),
    "pictures of four channels": (saved("vae", lambda: vae(in_channels=4, out_channels=4)), "does not run", "modules"),
    "t5": (edit(TEXT, model_type="t5", architectures=["T5EncoderModel"]), "model_type 't5'", "CLIP"),
    "roberta": (edit(TEXT, model_type="xlm-roberta"), "model_type 'xlm-roberta'", "CLIP"),
    "bert": (edit(TEXT, architectures=["BertModel"]), "BertModel", "CLIPTextModel"),
    "few embeddings": (without_ids, r"ids up to \d+", "text encoder has embeddings for"),
    "sentencepiece": (sentencepiece, "256 of the 256 bytes", "byte-level vocabulary"),
    "x0": (edit(SCHEDULER, prediction_type="x_start"), "prediction_type 'x_start'", "epsilon, v_prediction"),
    "no prediction": (edit(SCHEDULER, prediction_type=None), "prediction_type None", "epsilon, v_prediction"),
    "a number": (edit(SCHEDULER, prediction_type=3), "prediction_type 3", "epsilon, v_prediction"),
    "flow": (edit(SCHEDULER, prediction_type="flow_prediction"), "kind 'flow'", "linear"),
    "flow matching": (saved("scheduler", FlowMatchEulerDiscreteScheduler), "kind 'flow'", "linear"),
    "edm": (saved("scheduler", EDMEulerScheduler), "kind 'edm'", "linear"),
    "own scheduler": (edit(SCHEDULER, _class_name="MyScheduler"), "no scheduler of diffusers", "linear"),
    "no scheduler": (edit(SCHEDULER, _class_name=None), "no scheduler of diffusers", "linear"),
    "a model as scheduler": (edit(SCHEDULER, _class_name="UNet2DConditionModel"), "no scheduler", "linear"),
    "a function as scheduler": (edit(SCHEDULER, _class_name="os.system"), "no scheduler of diffusers", "linear"),
    "code": (edit(TEXT, auto_map={"AutoModel": "evil.Model"}), "auto_map, which asks for code", "a config"),
    "quantized": (edit(UNET, quantization_config={"quant_method": "gguf"}), "quantization_config", "a config"),
    "adapter": (also("unet/adapter_config.json", "{}"), "an adapter", "a saved UNet2DConditionModel"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_components_of_other_kinds(tiny, kind):
    change, actual, allowed = KINDS[kind]
    change(tiny)
    refused(tiny, actual, allowed)


FILES: dict[str, tuple[Change, str, str, str]] = {
    "pickle": (renamed(WEIGHTS, "unet/diffusion_pytorch_model.bin"), r"\.bin", "safetensors", "pickles are never"),
    "ckpt": (renamed(WEIGHTS, "unet/unet.ckpt"), r"unet\.ckpt", "safetensors", "pickles are never read"),
    "text pickle": (
        renamed("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"), r"pytorch_model\.bin",
        "safetensors", "pickles are never",
    ),
    "flax": (renamed(WEIGHTS, "unet/diffusion_flax_model.msgpack"), "msgpack", "safetensors", "other libraries"),
    "onnx": (renamed(WEIGHTS, "unet/model.onnx"), r"model\.onnx", "safetensors", "other libraries"),
    "gguf": (renamed(WEIGHTS, "unet/unet.gguf"), r"unet\.gguf", "safetensors", "other libraries"),
    "two variants": (variants, r"ema\.safetensors, .*fp16", "safetensors", "one variant"),
    "no weights": (without(WEIGHTS), "no weights", "safetensors", "save_pretrained"),
    "no unet": (without("unet"), "no such file", "JSON", "save_pretrained"),
    "no vae": (without("vae"), "no such file", "JSON", "save_pretrained"),
    "no text encoder": (without("text_encoder"), "no such file", "JSON", "save_pretrained"),
    "no tokenizer": (without("tokenizer"), "no such folder", "CLIPTokenizer", "save_pretrained"),
    "no scheduler": (without("scheduler"), "no such file", "JSON", "save_pretrained"),
    "no index": (without(INDEX), "without model_index.json", "diffusers layout", "save_pretrained"),
    "component": (
        both(without(INDEX), also("config.json", '{"_class_name": "ControlNetModel"}')), "without model_index.json",
        "diffusers layout", "one component",
    ),
    "adapter": (
        both(without(INDEX), also("adapter_config.json", "{}")), "without model_index.json", "diffusers", "--lora FILE"
    ),
    "lora": (
        both(without(INDEX), also("pytorch_lora_weights.safetensors", "")), "without model_index.json", "diffusers",
        "--lora FILE",
    ),
    "checkpoint": (
        both(without(INDEX), also("dream.safetensors", "")), "without model_index.json", "diffusers",
        "'dream.safetensors', with --config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_folders_of_other_files(tiny, kind):
    change, actual, allowed, remedy = FILES[kind]
    change(tiny)
    assert remedy in refused(tiny, actual, allowed).remedy


@pytest.mark.parametrize(
    ("family", "change", "actual", "allowed"),
    [
        (
            "sdxl",
            edit(INDEX, text_encoder=[None, None], tokenizer=[None, None]),
            "no text_encoder",
            "two text encoders",
        ),
        ("sdxl", edit(UNET, projection_class_embeddings_input_dim=80), "input_dim 80", "88, as SDXL's base model"),
        ("sdxl", edit(UNET, in_channels=9), "inpainting UNet", "takes 4"),
        ("sdxl", edit(UNET, addition_embed_type=None), "addition_embed_type None", "'text_time'"),
        ("sdxl", edit(INDEX, _class_name="StableDiffusionPipeline"), "text_encoder_2 of class", "unet, vae"),
        ("sdxl", edit(INDEX, text_encoder_3=["transformers", "T5EncoderModel"]), "text_encoder_3", "text_encoder_2"),
        ("sdxl", edit(VAE, latents_std=[1.0] * 4), "latents_std", "scaling_factor"),
        ("lcm", edit(UNET, time_cond_proj_dim=2), "time_cond_proj_dim 2", "4 or more"),
        ("lcm", edit(UNET, time_cond_proj_dim="256"), "time_cond_proj_dim '256'", "4 or more"),
        ("sd21", edit(INDEX, _class_name="LatentConsistencyModelPipeline"), "time_cond_proj_dim None", "guidance"),
        ("sd21", edit(INDEX, _class_name="StableDiffusionXLPipeline"), "no text_encoder_2", "two text encoders"),
    ],
)
def test_models_of_one_family_under_the_name_of_another(tmp_path, family, change, actual, allowed):
    folder = Path(shutil.copytree(family_source(family), tmp_path / "model"))
    change(folder)
    if "no text_encoder" in actual and family == "sdxl":  # as the refiner is published
        shutil.rmtree(folder / "text_encoder")
    refused(folder, actual, allowed)


@pytest.mark.parametrize(
    "change",
    [
        edit(INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        edit(INDEX, image_encoder=["transformers", "CLIPVisionModelWithProjection"], feature_extractor=[None, None]),
        edit(INDEX, tokenizer=["transformers", "CLIPTokenizerFast"], controlnet=[None, None]),
        made(mid_block_type=None),
        made(attention_type="gated"),
        edit(UNET, class_embed_type=None, num_class_embeds=None, encoder_hid_dim=None, dual_cross_attention=False),
        edit(VAE, latents_mean=None, latents_std=None, shift_factor=None),
        edit(SCHEDULER, prediction_type="v_prediction"),
    ],
)
def test_what_looks_like_it_and_is_supported(tiny, change):
    change(tiny)
    assert open_model(tiny).family == "sd"


@pytest.mark.parametrize("change", [edit(INDEX, _class_name="FluxPipeline"), made(in_channels=9), without("unet")])
def test_the_command_ends_with_the_message_alone(tiny, change, monkeypatch):
    change(tiny)
    monkeypatch.chdir(tiny.parent)
    done = CliRunner().invoke(app, ["export", "model", "--out", "out", "--schedulers", "euler"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("SourceError: model")
    assert "Traceback" not in done.output
    assert not (tiny.parent / "out").exists()
