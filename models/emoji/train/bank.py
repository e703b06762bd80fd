"""A bank of latents and captions on the device: drawn and encoded once, used many times.

Owns the pairing of latents with token ids. Each scene has CAPTIONS phrasings; a batch takes one at random.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from train.compose import Compositor, Scenes, described, sample_scenes
from transformers import CLIPTokenizer
from world import Scene, caption

CAPTIONS = 2
ENCODE_BATCH = 256


@dataclass(slots=True)
class Bank:
    """latents (N, 4, side/8, side/8) fp16, already scaled; tokens (N, CAPTIONS, 77) int16."""

    latents: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return self.latents.shape[0]

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        device = self.latents.device
        rows = torch.randint(len(self), (count,), device=device)
        phrasing = torch.randint(CAPTIONS, (count,), device=device)
        return self.latents[rows].float(), self.tokens[rows, phrasing].long()

    @staticmethod
    def drawn(
        compositor: Compositor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, side_px: int, count: int, seed: int
    ) -> Bank:
        """Draw `count` scenes; the device encodes them while the host writes their captions."""
        device = next(vae.parameters()).device
        scenes = sample_scenes(count, torch.Generator(device).manual_seed(seed))
        host = scenes.to(torch.device("cpu"))
        with ThreadPoolExecutor(1) as pool:
            telling = pool.submit(told, host, tokenizer, seed)
            latents = encoded(compositor, vae, scenes, side_px)
            return Bank(latents, telling.result().to(device))


def told(scenes: Scenes, tokenizer: CLIPTokenizer, seed: int) -> Tensor:
    rng = random.Random(seed)
    texts: list[str] = []
    words = described(scenes, [rng.random() < 0.5 for _ in range(len(scenes))])
    for scene in words:
        texts.extend(caption(loosened(scene, rng), rng) for _ in range(CAPTIONS))
    ids: list[list[int]] = []
    for start in range(0, len(texts), 16_384):
        ids += tokenizer(texts[start : start + 16_384], padding="max_length", max_length=77, truncation=True).input_ids
    return torch.tensor(ids, dtype=torch.int16).view(len(words), CAPTIONS, 77)


def loosened(scene: Scene, rng: random.Random) -> Scene:
    """Now and then a pair side by side is only said to be 'beside' or 'and'."""
    if scene.relation in ("left", "right") and rng.random() < 0.25:
        return replace(scene, relation="beside")
    return scene


@torch.no_grad()
def encoded(compositor: Compositor, vae: AutoencoderKL, scenes: Scenes, side_px: int) -> Tensor:
    """Posterior means times the scaling factor, fp16."""
    device = next(vae.parameters()).device
    parts = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        picture, _ = compositor.draw(scenes.part(slice(start, start + ENCODE_BATCH)), side_px)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encode(picture.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half())
    return torch.cat(parts)
