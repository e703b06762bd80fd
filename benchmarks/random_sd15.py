"""Stable Diffusion 1.5's exact architecture with random weights, as a folder in diffusers layout.

    python -m benchmarks.random_sd15 OUT [--seed 0] [--dtype fp16]

For measuring where the real weights are not: times and memory depend on shapes alone. Its pictures are noise. The
weights are torch's and transformers' own initial ones, so what flows through the graphs stays finite in fp16. The
tokenizer is that of models/emoji: a smaller vocabulary, all of whose ids are valid ones of the text encoder's.
Knows nothing of bundles.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import OutputError, ZturboError

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "models" / "emoji" / "tokenizer"

UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280), "norm_num_groups": 32, "norm_eps": 1e-5, "act_fn": "silu",
    "cross_attention_dim": 768, "attention_head_dim": 8, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code: 0, or 2 where something is in the way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_sd15", description="SD 1.5 of random weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="of the files")
    options = parser.parse_args(arguments)
    try:
        save(options.out, seed=options.seed, dtype=options.dtype)
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def save(folder: Path, *, seed: int, dtype: str) -> None:
    """Write the model, whole or not at all; the same weights for the same seed. Raises OutputError."""
    if folder.exists():
        raise OutputError(
            str(folder), actual="something is there", allowed="a new folder", remedy="Remove it, or name another."
        )
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    torch.manual_seed(seed)
    unet, vae, text_encoder = (module.to(getattr(torch, f"float{dtype[2:]}")) for module in modules())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        pipeline: Any = StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder, unet=unet, scheduler=PNDMScheduler(**SCHEDULER),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        written = Path(place) / folder.name
        pipeline.save_pretrained(written)
        shutil.move(written, folder)


def modules() -> tuple[Any, Any, Any]:
    """UNet, VAE and text encoder with initial weights, in eval mode, on torch's current default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    made = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    unet, vae, text_encoder = (module.eval() for module in made)
    return unet, vae, text_encoder


if __name__ == "__main__":
    sys.exit(main())
