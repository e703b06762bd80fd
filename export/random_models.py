"""Models of a published architecture with random weights, as folders in diffusers layout.

For measuring where the real weights are not: times and memory depend on shapes alone. Pictures are noise. Weights are
drawn as torch draws its initial ones, so what flows stays finite in fp16; the denoiser's last layer is scaled so that
it answers noise with numbers of its size. The tokenizer is that of models/emoji: all of its ids are valid ones.
Knows nothing of bundles.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import SourceError
from export.architectures import ARCHITECTURES, Architecture
from export.silent import silent
from export.source import INDEX

PREFIX = "random:"
TOKENIZER = Path(__file__).resolve().parents[1] / "models" / "emoji" / "tokenizer"
GAIN = 3.0
"""Of the UNet's last convolution. After a normalisation, SiLU and torch's initial weights 0.3 to 0.4 comes out."""
EMBEDDING_STD = 0.02
"""OpenAI's, of CLIP's token embeddings."""


def parse(text: str) -> tuple[str, int]:
    """Name and seed of `random:NAME` or `random:NAME@SEED`. Raises SourceError."""
    match = re.fullmatch(rf"{PREFIX}([a-z0-9]+)(?:@([0-9]{{1,9}}))?", text)
    if match is None or match[1] not in ARCHITECTURES:
        raise SourceError(
            text, actual="no architecture of that name", allowed=", ".join(f"{PREFIX}{name}" for name in ARCHITECTURES),
            remedy=f"Choose one of these; a seed may follow, {PREFIX}sd15@1.",
        )  # fmt: skip
    return match[1], int(match[2] or 0)


def write(folder: Path, name: str, *, seed: int = 0, dtype: torch.dtype = torch.float16, device: str = "cpu") -> None:
    """Write the model into an empty folder, one component in memory at a time.

    The same weights for the same seed on the same kind of device.
    """
    if not TOKENIZER.is_dir():
        raise SourceError(
            f"{PREFIX}{name}", actual=f"no {TOKENIZER}", allowed="the tokenizer of models/emoji",
            remedy="Run it from a checkout: the model ships with the repository, not with the package.",
        )  # fmt: skip
    architecture = ARCHITECTURES[name]
    generator = torch.Generator(device).manual_seed(seed)
    with silent():
        for component in architecture.modules:
            module = filled(architecture, component, dtype, generator)
            module.save_pretrained(folder / component, safe_serialization=True)
            del module
        _write_rest(folder, architecture)


def made(architecture: Architecture, component: str) -> nn.Module:
    """One component on torch's meta device: its shapes, no weights."""
    import diffusers
    import transformers

    name, settings = architecture.modules[component]
    with torch.device("meta"):
        if not name.startswith("CLIP"):
            module: nn.Module = getattr(diffusers, name)(**settings)
            return module
        kind: Any = getattr(transformers, name)
        text: nn.Module = kind(kind.config_class(**settings))
        return text


def filled(architecture: Architecture, component: str, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """One component in eval mode with random weights on the generator's device."""
    module: Any = made(architecture, component).to(dtype).to_empty(device=generator.device).eval()
    for part in module.modules():
        fill(part, generator)
    if component == "unet":
        module.conv_out.weight.data.mul_(GAIN)
    return module


@torch.no_grad()
def fill(part: nn.Module, generator: torch.Generator) -> None:
    """A layer's own parameters: a variance of 1/(3·inputs), which torch's initial ones have; norms are the identity."""
    weight = getattr(part, "weight", None)
    if isinstance(part, nn.Embedding):
        part.weight.normal_(0, EMBEDDING_STD, generator=generator)
    elif isinstance(part, nn.Linear | nn.Conv2d):
        std = (3 * part.weight[0].numel()) ** -0.5
        part.weight.normal_(0, std, generator=generator)
        if part.bias is not None:
            part.bias.normal_(0, std, generator=generator)
    elif isinstance(part, nn.LayerNorm | nn.GroupNorm) and weight is not None:
        weight.fill_(1)
        part.bias.zero_()
    else:
        assert not list(part.parameters(recurse=False)), f"{type(part).__name__} has parameters that nothing fills"


def _write_rest(folder: Path, architecture: Architecture) -> None:
    """Scheduler, tokenizers and model_index.json."""
    import diffusers
    from transformers import CLIPTokenizer

    kind, settings = architecture.scheduler
    getattr(diffusers, kind)(**settings).save_pretrained(folder / "scheduler")
    for name, pad in architecture.tokenizers.items():
        tokenizer: Any = CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
        if pad is not None:
            tokenizer.pad_token = pad
        tokenizer.save_pretrained(folder / name)
    classes = {name: kind for name, (kind, _) in architecture.modules.items()}
    classes |= dict.fromkeys(architecture.tokenizers, "CLIPTokenizer") | {"scheduler": kind}
    index = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__, **architecture.index}
    for name, class_name in classes.items():
        index[name] = ["transformers" if class_name.startswith("CLIP") else "diffusers", class_name]
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
