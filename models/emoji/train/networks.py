"""The four parts of the model, each one explicit literal, and how they are written and read.

Owns the architecture and the noise schedule. Knows nothing of data or training.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 96),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=4,
        norm_num_groups=32,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
    )


def denoiser() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        norm_num_groups=32,
        cross_attention_dim=192,
        attention_head_dim=(2, 3, 4),  # diffusers reads this as the number of heads: 32 channels each
    )


def text_encoder(vocab_size: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=192,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """v-prediction down to a signal of 0.0024 at the last timestep.

    SD's own schedule ends at a signal of 0.068: there a plain background's mean is still legible in the
    noise, and a start from pure noise comes out with the wrong colour. Exactly zero would be cleaner, but
    Euler's sigma is then infinite (diffusers clips it to 4096, which costs float32 digits). 0.0024 is lost
    in the noise even when averaged over all 1024 latent positions, and sigma stays at 421.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.03,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )


SCHEDULER_FIELDS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing",
    "algorithm_type", "solver_order", "solver_type", "lower_order_final", "final_sigmas_type", "use_karras_sigmas",
    "thresholding", "trained_betas",
)  # fmt: skip


def write_scheduler_config(folder: Path) -> None:
    """The scheduler's config, and what DDIM and Euler would otherwise take from their own defaults.

    Fields that diffusers fills in alike are left out (one of them is -Infinity, which is not JSON).
    steps_offset means nothing with trailing spacing, but diffusers warns when it is not 1.
    """
    own = scheduler()
    config: dict[str, object] = {"_class_name": type(own).__name__}
    config |= {name: own.config[name] for name in SCHEDULER_FIELDS}
    config |= {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    (folder / "scheduler_config.json").write_text(text, encoding="utf-8")
