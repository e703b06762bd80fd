"""What PyTorch makes of Z-Image-Turbo's exact architecture, in bf16, of random weights that no disk holds.

    python -m benchmarks.zimage_torch --mode eager compile --size 1024 --steps 8 --tokens 96 --out out/zimage-torch.json

The transformer's forward and the decoder, by CUDA events; diffusers' own ZImagePipeline from a caption's embeddings to
the picture, wall time; the most that torch's allocator held. The text encoder is timed apart, for it fits beside the
transformer on large GPUs only. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import gpu_facts
from benchmarks.pairs import Summary
from benchmarks.report import finish
from benchmarks.stamps import repeated_ms
from benchmarks.torch_pipe import device, synchronize
from benchmarks.with_torch import device_name, torch_clock

TRANSFORMER: dict[str, Any] = {"axes_lens": [1536, 512, 512]}
"""Beside diffusers' defaults of ZImageTransformer2DModel, which are the published model's."""
TEXT: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
"""Qwen3-4B's."""
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
MODES = ("eager", "compile")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One picture; tokens: of the caption, padded to 32. The configs differ from the published ones in tests alone."""

    size: int = 1024
    steps: int = 8
    tokens: int = 96
    transformer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: TRANSFORMER)
    text: Mapping[str, Any] = dataclasses.field(default_factory=lambda: TEXT)
    vae: Mapping[str, Any] = dataclasses.field(default_factory=lambda: VAE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _parser().parse_args(arguments)
    work = Work(size=options.size, steps=options.steps, tokens=options.tokens)
    finish(measure(work, options.mode, repeats=options.repeats, pictures=options.pictures), options.out)
    return 0


def measure(work: Work, modes: Sequence[str], *, repeats: int, pictures: int) -> dict[str, Any]:
    """{mode: its times}, and what they are of."""
    warnings.simplefilter("ignore")
    text = _text_encoder(work, repeats)
    _forget()
    return {
        "benchmark": "zimage-torch", "precision": "bf16", "width": work.size, "height": work.size,
        "steps": work.steps, "tokens": work.tokens, "device": device_name(), "text_encoder": text,
        "modes": {mode: _mode(work, mode, repeats, pictures) for mode in modes}, "machine": gpu_facts("pytorch"),
    }  # fmt: skip


def drawn(make: Callable[[], Any]) -> Any:
    """A module of the library's own initial weights, in bf16, made on the device: never in host memory."""
    import torch

    kept = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device()):
            module = make().eval()
    finally:
        torch.set_default_dtype(kept)
    for name, parameter in module.named_parameters():
        if name.endswith("pad_token"):  # left as memory was
            torch.nn.init.normal_(parameter, std=0.02)
    return module


def _text_encoder(work: Work, repeats: int) -> dict[str, Any]:
    """Milliseconds of one caption of so many tokens, eager, and parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    model = drawn(lambda: Qwen3Model(Qwen3Config(**work.text)))
    ids = torch.randint(0, work.text["vocab_size"], (1, work.tokens), device=device())

    def encode() -> None:
        with torch.inference_mode():
            model(ids, output_hidden_states=True, use_cache=False)

    found = repeated_ms(encode, torch_clock(), synchronize, warmup=3, repeats=repeats)
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"ms": dataclasses.asdict(Summary.of(found)), "parameters": count}


def _mode(work: Work, mode: str, repeats: int, pictures: int) -> dict[str, Any]:
    """One mode. first_s: the first forward, of compile the compiler's time; peak_mib: torch's allocator's."""
    import torch

    torch.compiler.reset()
    pipe = open_pipeline(work)
    if mode == "compile":
        pipe.transformer = torch.compile(pipe.transformer)
        pipe.vae.decoder = torch.compile(pipe.vae.decoder)
    calls = _calls(pipe, work)
    begun = time.perf_counter()
    calls["forward_ms"]()
    synchronize()
    first_s = time.perf_counter() - begun
    times = {
        name: dataclasses.asdict(Summary.of(repeated_ms(call, torch_clock(), synchronize, warmup=3, repeats=repeats)))
        for name, call in calls.items()
    }
    seconds = [_picture(pipe, work) for _ in range(pictures + 1)][1:]
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    del pipe, calls
    _forget()
    return {"first_s": first_s, **times, "picture_s": dataclasses.asdict(Summary.of(seconds)), "peak_mib": peak}


def open_pipeline(work: Work) -> Any:
    """Its pipeline in diffusers without a text encoder."""
    import diffusers

    return _quiet(diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=None, tokenizer=None,
        transformer=drawn(lambda: diffusers.ZImageTransformer2DModel(**work.transformer)),
        vae=drawn(lambda: diffusers.AutoencoderKL(**work.vae)),
    ))  # fmt: skip


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _calls(pipe: Any, work: Work) -> dict[str, Callable[[], None]]:
    """A call of the transformer and of the decoder, on random values of the pipeline's shapes."""
    import torch

    like: dict[str, Any] = {"dtype": torch.bfloat16, "device": device()}
    latents = torch.randn(1, pipe.vae.config.latent_channels, work.size // 8, work.size // 8, **like)
    caption = _caption(pipe, work)
    timestep = torch.tensor([0.5], device=device())

    def forward() -> None:
        with torch.inference_mode():
            pipe.transformer([latents[0].unsqueeze(1)], timestep, [caption], return_dict=False)

    def decode() -> None:
        with torch.inference_mode():
            pipe.vae.decode(latents, return_dict=False)

    return {"forward_ms": forward, "decode_ms": decode}


def _caption(pipe: Any, work: Work) -> Any:
    import torch

    torch.manual_seed(1)
    width = pipe.transformer.config.cap_feat_dim
    return torch.randn(work.tokens, width, dtype=torch.bfloat16, device=device())


def _picture(pipe: Any, work: Work) -> float:
    """Wall seconds from a caption's embeddings to the picture."""
    import torch

    begun = time.perf_counter()
    with torch.inference_mode():
        pipe(
            prompt_embeds=[_caption(pipe, work)], height=work.size, width=work.size, num_inference_steps=work.steps,
            guidance_scale=0.0,
        )  # fmt: skip
    synchronize()
    return time.perf_counter() - begun


def _forget() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zimage_torch", description="Z-Image-Turbo in PyTorch")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--size", type=int, default=1024, help="pixels along each side")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="of the caption, a multiple of 32")
    parser.add_argument("--repeats", type=int, default=20, help="timed forwards")
    parser.add_argument("--pictures", type=int, default=3, help="timed pictures")
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
