"""Diffusers' own pipeline at its best settings, and each of its stages: text encoders, denoiser, decoder.

Knows no clock and no backend of ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.work import Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Call = Callable[[], None]


def open_pipeline(work: Work, precision: str) -> Any:
    """The work's pipeline and scheduler, UNet and VAE channels_last; on the CPU where there is no GPU.

    Attention is torch's scaled_dot_product_attention. The VAE computes in the precision asked for, also where its
    config has it upcast to fp32: that is what the fp16-safe VAE that people put in its place does.
    """
    import diffusers
    import torch

    warnings.simplefilter("ignore")
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(
        work.source, local_files_only=True, torch_dtype=torch_type(precision)
    )
    pipe.scheduler = getattr(diffusers, work.scheduler_class).from_pretrained(
        work.source / "scheduler", local_files_only=True, **work.scheduler_settings
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device())
    pipe.vae.register_to_config(force_upcast=False)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    return pipe


def compile_pipeline(pipe: Any) -> None:
    """Have torch.compile take the UNet and the decoder, with CUDA graphs; the text encoders stay as they are."""
    import torch

    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead")
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, mode="reduce-overhead")


def stages(pipe: Any, work: Work) -> dict[str, Call]:
    """A call of each stage, with the shapes and types of the pipeline's own calls, so that it is compiled once.

    conditioning: prompt and empty negative prompt, tokenizer included. denoiser: two rows, of random values. decode:
    of random latents.
    """
    import torch

    torch.manual_seed(0)
    config, dtype, place = pipe.unet.config, pipe.unet.dtype, device()
    latent = (config.in_channels, work.height // 8, work.width // 8)
    sample = torch.randn(2, *latent, dtype=dtype, device=place)
    text = torch.randn(2, 77, config.cross_attention_dim, dtype=dtype, device=place)
    timestep = torch.tensor(500, device=place)
    added = _added(config, work, dtype)

    def conditioning() -> None:
        pipe.encode_prompt(work.prompt, device=place, num_images_per_prompt=1, do_classifier_free_guidance=True)

    def denoiser() -> None:
        pipe.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)

    def decode() -> None:
        pipe.vae.decode(sample[:1], return_dict=False)

    return {name: _inference(call) for name, call in
            {"conditioning": conditioning, "denoiser": denoiser, "decode": decode}.items()}  # fmt: skip


def paint(pipe: Any, work: Work, on_step: Callable[[int], None] = lambda _: None) -> NDArray[np.uint8]:
    """One picture, (H, W, 3), from the work's latents; on_step(index) after each of the scheduler's timesteps."""
    import numpy as np
    import torch

    def after(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(index)
        return tensors

    latents = torch.from_numpy(work.latents).to(device=device(), dtype=pipe.unet.dtype)
    with torch.inference_mode():
        images = pipe(
            work.prompt, height=work.height, width=work.width, num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale, callback_on_step_end=after, latents=latents,
        ).images  # fmt: skip
    return np.asarray(images[0], np.uint8)


def torch_type(precision: str) -> Any:
    """The type in torch of `fp16` or `fp32`."""
    import torch

    return {"fp16": torch.float16, "fp32": torch.float32}[precision]


def device() -> str:
    """`cuda`, or `cpu` where torch can use no GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _added(config: Any, work: Work, dtype: Any) -> dict[str, Any] | None:
    """What SDXL's UNet reads beside the prompt; None of the others."""
    import torch

    if config.addition_embed_type != "text_time":
        return None
    ids = [work.height, work.width, 0, 0, work.height, work.width]
    width = config.projection_class_embeddings_input_dim - len(ids) * config.addition_time_embed_dim
    pooled = torch.randn(2, width, dtype=dtype, device=device())
    return {"text_embeds": pooled, "time_ids": torch.tensor([ids] * 2, dtype=dtype, device=device())}


def _inference(call: Call) -> Call:
    """The call in inference mode; tells CUDA graphs that what they gave before is not needed any more."""
    import torch

    compiler: Any = torch.compiler

    def run() -> None:
        with torch.inference_mode():
            if torch.cuda.is_available():
                compiler.cudagraph_mark_step_begin()
            call()

    return run
