"""Models of a published architecture with random weights, as folders in diffusers layout.

For measuring where the real weights are not: times and memory depend on shapes alone. Pictures are noise. Weights are
drawn as torch draws its initial ones, so what flows stays finite in fp16; a UNet's last layer is scaled so that it
answers noise with numbers of its size. Layers are drawn one at a time and written, so no component is ever whole in
memory. The tokenizer is that of models/emoji, or one of bytes: all of its ids are valid ones. Knows nothing of bundles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import SourceError
from export.architectures import ARCHITECTURES, Architecture
from export.byte_tokenizer import save_byte_tokenizer
from export.largest import ISLANDS
from export.shards import write_shards
from export.silent import silent
from export.source import INDEX
from export.untrusted import WEIGHTS

PREFIX = "random:"
TOKENIZER = Path(__file__).resolve().parents[1] / "models" / "emoji" / "tokenizer"
GAINS = {("unet", "conv_out"): 3.0}
"""Of the UNet's last convolution. After a normalisation, SiLU and torch's initial weights 0.3 to 0.4 comes out."""
EMBEDDING_STD = 0.02
"""OpenAI's, of CLIP's token embeddings, and Qwen's."""
OF_TRANSFORMERS = ("CLIP", "Qwen")
"""How the names of classes begin that are not diffusers'."""
NORMS = (nn.LayerNorm, nn.GroupNorm)


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
    """Write the model into an empty folder, about a gigabyte of it in memory at a time.

    The same weights for the same seed on the same kind of device, where they are drawn.
    """
    if not TOKENIZER.is_dir():
        raise SourceError(
            f"{PREFIX}{name}", actual=f"no {TOKENIZER}", allowed="the tokenizer of models/emoji",
            remedy="Run it from a checkout: the model ships with the repository, not with the package.",
        )  # fmt: skip
    architecture = ARCHITECTURES[name]
    generator = torch.Generator(device).manual_seed(seed)
    with silent():
        for component, (kind, _) in architecture.modules.items():
            module = made(architecture, component)
            _write_config(folder / component, module, kind)
            stem = WEIGHTS["transformers" if kind.startswith(OF_TRANSFORMERS) else "diffusers"]
            write_shards(folder / component, stem, drawn(module.to(dtype), component, generator))
        _write_rest(folder, architecture)


def made(architecture: Architecture, component: str) -> nn.Module:
    """One component on torch's meta device: its shapes, no weights."""
    import diffusers
    import transformers

    name, settings = architecture.modules[component]
    with torch.device("meta"):
        if not name.startswith(OF_TRANSFORMERS):
            module: nn.Module = getattr(diffusers, name)(**settings)
            return module
        kind: Any = getattr(transformers, name)
        text: nn.Module = kind(kind.config_class(**settings))
        return text


def drawn(module: nn.Module, component: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """The weights of a module on the meta device by name, layer by layer, drawn on the generator's device."""
    for path, part in module.named_modules():
        if not list(part.parameters(recurse=False)):
            continue
        part.to_empty(device=generator.device, recurse=False)
        fill(part, generator)
        if (gain := GAINS.get((component, path))) is not None:
            part.get_parameter("weight").data.mul_(gain)
        own = {f"{path}.{name}".lstrip("."): one.detach() for name, one in part.named_parameters(recurse=False)}
        part.to_empty(device="meta", recurse=False)
        yield from own.items()


@torch.no_grad()
def fill(part: Any, generator: torch.Generator) -> None:
    """A layer's own parameters: a variance of 1/(3·inputs), which torch's initial ones have; norms are the identity."""
    if isinstance(part, nn.Embedding):
        part.weight.normal_(0, EMBEDDING_STD, generator=generator)
    elif isinstance(part, nn.Linear | nn.Conv2d):
        std = (3 * part.weight[0].numel()) ** -0.5
        part.weight.normal_(0, std, generator=generator)
        if part.bias is not None:
            part.bias.normal_(0, std, generator=generator)
    elif isinstance(part, NORMS) or type(part).__name__ in ISLANDS:
        part.weight.fill_(1)
        if getattr(part, "bias", None) is not None:
            part.bias.zero_()
    else:
        for name, parameter in part.named_parameters(recurse=False):
            assert name.endswith("pad_token"), f"{type(part).__name__} has parameters that nothing fills: {name}"
            parameter.normal_(0, EMBEDDING_STD, generator=generator)


def _write_config(folder: Path, module: Any, kind: str) -> None:
    folder.mkdir()
    if kind.startswith(OF_TRANSFORMERS):
        module.config.architectures = [kind]
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)


def _write_rest(folder: Path, architecture: Architecture) -> None:
    """Scheduler, tokenizers and model_index.json."""
    import diffusers

    scheduler, settings = architecture.scheduler
    getattr(diffusers, scheduler)(**settings).save_pretrained(folder / "scheduler")
    for name, pad in architecture.tokenizers.items():
        if architecture.tokenizer == "Qwen2Tokenizer":
            save_byte_tokenizer(folder / name)
        else:
            _save_clip_tokenizer(folder / name, pad)
    classes = {name: kind for name, (kind, _) in architecture.modules.items()}
    classes |= dict.fromkeys(architecture.tokenizers, architecture.tokenizer) | {"scheduler": scheduler}
    index = {"_class_name": architecture.pipeline, "_diffusers_version": diffusers.__version__, **architecture.index}
    for name, class_name in classes.items():
        index[name] = ["transformers" if class_name.startswith(OF_TRANSFORMERS) else "diffusers", class_name]
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_clip_tokenizer(folder: Path, pad: str | None) -> None:
    from transformers import CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
