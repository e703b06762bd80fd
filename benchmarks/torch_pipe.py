"""Diffusers' own pipeline at its best settings, and each of its stages: text encoders, denoiser, decoder.

Knows no clock and no backend of ours, and no family: a pipeline has a `unet` or a `transformer`, and what its parts are
called with is what they were called with when they painted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.work import Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Call = Callable[[], None]
Arguments = tuple[Any, Any]
TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def open_pipeline(work: Work, precision: str) -> Any:
    """The work's pipeline and scheduler, denoiser and VAE channels_last; on the CPU where there is no GPU.

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
    if "force_upcast" in pipe.vae.config:
        pipe.vae.register_to_config(force_upcast=False)
    for part in (denoiser_of(pipe), pipe.vae):
        part.to(memory_format=torch.channels_last)
    return pipe


def denoiser_name(pipe: Any) -> str:
    """What a pipeline calls its denoiser."""
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def denoiser_of(pipe: Any) -> Any:
    """A pipeline's denoiser."""
    return getattr(pipe, denoiser_name(pipe))


def compile_pipeline(pipe: Any, mode: str | None = "reduce-overhead") -> None:
    """Have torch.compile take the denoiser and the decoder; the text encoders stay as they are.

    mode: torch.compile's own; `reduce-overhead` replays CUDA graphs. None: its default, which is all a CPU has.
    """
    import torch

    setattr(pipe, denoiser_name(pipe), torch.compile(denoiser_of(pipe), mode=mode))
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, mode=mode)


def stages(pipe: Any, work: Work) -> dict[str, Call]:
    """A call of each stage, with what the pipeline itself gave it in a short picture: compiled once, if at all.

    conditioning: prompt and, of a guided picture, negative prompt, tokenizer included. denoiser: a picture's rows.
    decode: the VAE's decoder.
    """
    asked = recorded(pipe, work)

    def conditioning() -> None:
        pipe.encode_prompt(*asked["conditioning"][0], **asked["conditioning"][1])

    def denoiser() -> None:
        denoiser_of(pipe)(*asked["denoiser"][0], **asked["denoiser"][1])

    def decode() -> None:
        pipe.vae.decode(*asked["decode"][0], **asked["decode"][1])

    return {call.__name__: inference(call) for call in (conditioning, denoiser, decode)}


def recorded(pipe: Any, work: Work) -> dict[str, Arguments]:
    """{stage: positional and named arguments} of the last call of each stage in a picture of two steps."""
    found: dict[str, Arguments] = {}
    name = denoiser_name(pipe)
    kept = pipe.__dict__[name]
    pipe.__dict__[name] = _Recorder(kept, kept, "denoiser", found)  # not setattr, which registers a component
    pipe.encode_prompt = _Recorder(pipe, pipe.encode_prompt, "conditioning", found)
    pipe.vae.decode = _Recorder(pipe.vae, pipe.vae.decode, "decode", found)
    try:
        paint(pipe, dataclasses.replace(work, steps=min(work.steps, 2)))
    finally:
        pipe.__dict__[name] = kept
        del pipe.encode_prompt, pipe.vae.decode
    return found


class _Recorder:
    """A module, or a call of one, that keeps what it is called with."""

    def __init__(self, module: Any, call: Any, name: str, found: dict[str, Arguments]) -> None:
        self.module, self.call, self.name, self.found = module, call, name, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.found[self.name] = _copied(args), _copied(kwargs)
        return self.call(*args, **kwargs)


def _copied(value: Any) -> Any:
    """The same with tensors of its own: a CUDA graph writes over those that it was given."""
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return value.clone() if hasattr(value, "clone") else value


def paint(pipe: Any, work: Work, on_step: Callable[[int], None] = lambda _: None) -> NDArray[np.uint8]:
    """Pictures, (count, H, W, 3), one from each of the work's latents; on_step(index) after each timestep."""
    import numpy as np
    import torch

    def after(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(index)
        return tensors

    float32 = type(pipe).__name__.startswith("ZImage")  # its loop keeps them so, and refuses others
    latents = torch.from_numpy(work.latents).to(
        device=device(), dtype=torch.float32 if float32 else denoiser_of(pipe).dtype
    )
    with torch.inference_mode():
        images = pipe(
            work.prompt, height=work.height, width=work.width, num_inference_steps=work.steps,
            guidance_scale=work.guidance_scale, callback_on_step_end=after, latents=latents,
            num_images_per_prompt=len(work.latents),
        ).images  # fmt: skip
    return np.stack([np.asarray(image, np.uint8) for image in images])


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Within the block torch's attention is two products and a softmax, each an operation of its own."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def torch_type(precision: str) -> Any:
    """The type in torch of `fp16`, `bf16` or `fp32`."""
    import torch

    return getattr(torch, TYPES[precision])


def device() -> str:
    """`cuda`, or `cpu` where torch can use no GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def inference(call: Call) -> Call:
    """The call in inference mode; tells CUDA graphs that what they gave before is not needed any more."""
    import torch

    compiler: Any = torch.compiler

    def run() -> None:
        with torch.inference_mode():
            if torch.cuda.is_available():
                compiler.cudagraph_mark_step_begin()
            call()

    return run
