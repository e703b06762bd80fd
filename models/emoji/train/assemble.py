"""Put a finished run together: DIR/vae, DIR/ema.safetensors and the tokenizer -> the diffusers layout, fp16.

python -m train.assemble --work DIR --model models/emoji
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from train import networks
from train.denoiser import Denoising
from transformers import CLIPTokenizer

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def assemble(work: Path, model: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    trained = Denoising(len(tokenizer))
    trained.load_state_dict(load_file(work / "ema.safetensors"))
    vae = AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float16)
    vae.save_pretrained(model / "vae")
    trained.unet.half().save_pretrained(model / "unet")
    trained.text_encoder.half().save_pretrained(model / "text_encoder")
    networks.write_scheduler_config(model / "scheduler")
    (model / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
    for config in model.glob("*/config.json"):
        without_paths(config)
    total = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    print(f"{model}: {total / 1e6:.2f} MB of weights")


def without_paths(config: Path) -> None:
    """Drop the folder a part was loaded from, which means nothing to anyone else."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields.pop("_name_or_path", None)
    config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    assemble(options.work, options.model)


if __name__ == "__main__":
    main()
