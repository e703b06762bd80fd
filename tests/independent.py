"""What tests compare prompts with: diffusers' own encode_prompt, and chunks and weights written out in torch.

Written apart from export/ and runtime/, so that a mistake there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline


class Encoder:
    """The model's own pipeline in fp32."""

    def __init__(self, source: Path) -> None:
        self.pipeline = StableDiffusionPipeline.from_pretrained(source, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        text = self.pipeline.text_encoder
        if not hasattr(text, "text_model"):  # diffusers asks for it, transformers 5.23 has it no more
            text.__dict__["text_model"] = text

    def encode_prompt(self, texts: Sequence[str], clip_skip: int | None) -> np.ndarray:
        """diffusers' embeddings: (texts, 77, D)."""
        with torch.inference_mode():
            found, _ = self.pipeline.encode_prompt(list(texts), "cpu", 1, False, clip_skip=clip_skip)
        return found.numpy()

    def weighted(self, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(rows, tokens, D): every 77 ids encoded alone, multiplied, and brought back to their mean, one at a time."""
        rows = []
        for row, row_weights in zip(ids, weights, strict=True):
            chunks = []
            for start in range(0, len(row), 77):
                piece = torch.from_numpy(row[None, start : start + 77]).long()
                with torch.inference_mode():
                    z = self.pipeline.text_encoder(piece)[0][0].double()
                factors = torch.from_numpy(row_weights[start : start + 77]).double()
                scaled = z * factors[:, None]
                chunks.append(scaled * (z.mean() / scaled.mean()))
            rows.append(torch.cat(chunks))
        return torch.stack(rows).numpy()

    def ids(self, text: str, chunks: int) -> np.ndarray:
        """(1, 77·chunks): all of the text's tokens, 75 to a chunk."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        found = []
        for start in range(0, 75 * chunks, 75):
            part = tokens[start : start + 75]
            padding = [tokenizer.pad_token_id] * (75 - len(part))
            found += [tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding]
        return np.array([found])

    def latents(
        self, cond: np.ndarray, uncond: np.ndarray, noise: np.ndarray, steps: int, guidance: float
    ) -> np.ndarray:
        """The final latents of diffusers' whole pipeline for given embeddings."""
        height, width = 8 * noise.shape[2], 8 * noise.shape[3]
        with torch.inference_mode():
            made = self.pipeline(
                prompt_embeds=torch.from_numpy(cond).float(), negative_prompt_embeds=torch.from_numpy(uncond).float(),
                height=height, width=width, num_inference_steps=steps, guidance_scale=guidance,
                latents=torch.from_numpy(noise), output_type="latent",
            ).images  # fmt: skip
        return made.numpy()
