"""The published architectures that random weights are made for, as literals: each differs from Stable Diffusion 1.5.

Figures are those of the configs that came with the published weights. Does not know how modules are made or saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280), "norm_num_groups": 32, "norm_eps": 1e-5, "act_fn": "silu",
    "cross_attention_dim": 768, "attention_head_dim": 8, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip
OPENCLIP_H: dict[str, Any] = {
    **CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip
OPENCLIP_BIG_G: dict[str, Any] = {
    **CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
UNET_XL: dict[str, Any] = {
    **UNET, "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
ZIMAGE: dict[str, Any] = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 3840, "n_layers": 30,
    "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "norm_eps": 1e-5, "qk_norm": True, "cap_feat_dim": 2560,
    "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
}  # fmt: skip
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
VAE_16: dict[str, Any] = {
    **VAE, "sample_size": 1024, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "force_upcast": True, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A pipeline: its class, the class and settings of each component, and what else model_index.json says.

    modules: in the order they are made. tokenizers: by folder, and the pad token where it is not the end of text.
    tokenizer: their class.
    """

    pipeline: str
    modules: dict[str, tuple[str, dict[str, Any]]]
    scheduler: tuple[str, dict[str, Any]]
    tokenizers: dict[str, str | None]
    index: dict[str, Any]
    tokenizer: str = "CLIPTokenizer"


def _sd(unet: dict[str, Any], text: dict[str, Any], scheduler: tuple[str, dict[str, Any]], vae: dict[str, Any],
        pipeline: str = "StableDiffusionPipeline") -> Architecture:  # fmt: skip
    modules = {
        "unet": ("UNet2DConditionModel", unet), "vae": ("AutoencoderKL", vae), "text_encoder": ("CLIPTextModel", text),
    }  # fmt: skip
    none = [None, None]
    index = {
        "safety_checker": none, "feature_extractor": none, "image_encoder": none, "requires_safety_checker": False,
    }  # fmt: skip
    return Architecture(
        pipeline=pipeline, modules=modules, scheduler=scheduler, tokenizers={"tokenizer": None}, index=index
    )


ARCHITECTURES: dict[str, Architecture] = {
    "sd15": _sd(
        UNET, CLIP_L,
        ("PNDMScheduler", {**BETAS, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}), VAE,
    ),
    "sd21": _sd(
        {
            **UNET, "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True, "upcast_attention": True,
        },
        OPENCLIP_H,
        ("DDIMScheduler", {**BETAS, "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False,
                           "steps_offset": 1}),
        {**VAE, "sample_size": 768},
    ),
    "lcm": _sd(
        {**UNET, "time_cond_proj_dim": 256}, CLIP_L,
        ("LCMScheduler", {**BETAS, "clip_sample": False, "steps_offset": 1}), VAE, "LatentConsistencyModelPipeline",
    ),
    "sdxl": Architecture(
        pipeline="StableDiffusionXLPipeline",
        modules={
            "unet": ("UNet2DConditionModel", UNET_XL),
            "vae": ("AutoencoderKL", {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", OPENCLIP_BIG_G),
        },
        scheduler=("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}),
        tokenizers={"tokenizer": None, "tokenizer_2": "!"},
        index={"force_zeros_for_empty_prompt": True, "image_encoder": [None, None], "feature_extractor": [None, None]},
    ),
    "zimage": Architecture(
        pipeline="ZImagePipeline",
        modules={
            "transformer": ("ZImageTransformer2DModel", ZIMAGE), "vae": ("AutoencoderKL", VAE_16),
            "text_encoder": ("Qwen3Model", QWEN3_4B),
        },
        scheduler=("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
        tokenizers={"tokenizer": None}, tokenizer="Qwen2Tokenizer", index={},
    ),
}  # fmt: skip
