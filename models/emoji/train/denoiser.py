"""Train the denoiser and the text encoder together, on latents of the frozen autoencoder.

    python -m train.denoiser --work DIR --model models/emoji --minutes 10

Needs DIR/sprites.npz, DIR/vae and the tokenizer in --model. Writes DIR/weights.safetensors and
DIR/ema.safetensors (fp16; resume with --resume DIR), DIR/denoiser.jsonl and DIR/samples_*.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train import networks, sprites
from train.bank import Bank
from train.clock import Average, Clock, Log
from train.compose import Compositor
from train.options import prepare, trainer_parser
from train.vae import sheet
from transformers import CLIPTokenizer

DROPOUT = 0.1
# (side in pixels, batch, scenes in the bank): two steps of 256 for one of 128.
SIZES = ((256, 512, 163_840), (256, 512, 0), (128, 1024, 65_536))
SMOKE_SIZES = ((64, 4, 32), (32, 4, 32))
SAMPLE_PROMPTS = (
    "a cat on a blue background", "a small rocket on black", "a large pizza on white", "a guitar on pink",
    "an owl on a teal background", "grapes on yellow", "a cat left of a pizza on white", "a bus above a key on gray",
    "a robot on an orange background", "a big panda on green", "a tiny crown on purple", "a cactus on brown",
    "a frog next to a bell on red", "a unicorn on a gray background", "a bicycle on white", "a donut on black",
)  # fmt: skip


class Denoising(nn.Module):
    """Text encoder and UNet: tokens and noisy latents in, v out."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_encoder = networks.text_encoder(vocab_size)
        self.unet = networks.denoiser()

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        conditioning = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timestep, conditioning, return_dict=False)[0]


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    clock = Clock(options.minutes, options.rate, 300)
    tokenizer = CLIPTokenizer.from_pretrained(options.model / "tokenizer")
    empty = torch.tensor(tokenizer("", padding="max_length", max_length=77).input_ids, device=device)
    model = Denoising(len(tokenizer)).to(device, memory_format=torch.channels_last)
    average = Average(model, 0.9995)
    if options.resume is not None:
        resume(model, average, options.resume)
    forward = torch.compile(model, dynamic=False) if options.compile else model
    sizes = SMOKE_SIZES if options.smoke else SIZES
    if options.warm_compile:
        warm(forward, sizes, empty)
        return
    vae = AutoencoderKL.from_pretrained(options.work / "vae").to(device).requires_grad_(False).eval()
    compositor = Compositor(sprites.load(options.work), device)
    banks = {
        side: Bank.drawn(compositor, vae, tokenizer, side, count, options.seed + side)
        for side, _, count in sizes
        if count
    }
    print(f"banks of {[len(bank) for bank in banks.values()]} at {clock.spent_minutes:.2f} minutes", flush=True)
    signal = networks.scheduler().alphas_cumprod.to(device).sqrt()
    noise_scale = (1 - signal.square()).sqrt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    log = Log(options.work / "denoiser.jsonl", clock)
    step, saved = 0, clock.spent_minutes
    while clock.fraction < 1 and not (options.smoke and step >= 4):
        side, batch, _ = sizes[step % len(sizes)]
        latents, tokens = banks[side].batch(batch)
        tokens = torch.where(torch.rand(batch, 1, device=device) < DROPOUT, empty, tokens)
        timestep = stratified(batch, device)
        noise = torch.randn_like(latents)
        a, s = signal[timestep, None, None, None], noise_scale[timestep, None, None, None]
        noisy = (a * latents + s * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            v = forward(noisy, timestep, tokens)
        loss = (v.float() - (a * noise - s * latents)).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(step)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        log.add(**{f"loss_{side}": loss * len(sizes) / sum(each[0] == side for each in sizes)}, norm=norm)
        step += 1
        if step % 150 == 0 or options.smoke:
            log.write(step)
        if clock.spent_minutes - saved > options.save_minutes:
            saved = clock.spent_minutes
            save(options, model, average, vae, tokenizer)
    save(options, model, average, vae, tokenizer)
    print(f"denoiser: {step} steps in {clock.spent_minutes:.2f} minutes", flush=True)


def stratified(batch: int, device: torch.device) -> Tensor:
    """(batch,) timesteps, one from each equal slice of the schedule: the loss varies less."""
    spread = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
    return (spread * 1000).long().clamp(0, 999)


def warm(forward: nn.Module, sizes: tuple[tuple[int, int, int], ...], empty: Tensor) -> None:
    """Compile for every shape once, so that the compiler's cache is full when training starts."""
    for side, batch, _ in dict.fromkeys(sizes):
        latents = torch.randn(batch, 4, side // 8, side // 8, device=empty.device)
        latents = latents.contiguous(memory_format=torch.channels_last)
        with torch.autocast(empty.device.type, torch.bfloat16):
            forward(latents, stratified(batch, empty.device), empty.expand(batch, -1).contiguous()).sum().backward()
    print("warm: compiled", flush=True)


def resume(model: nn.Module, average: Average, folder: Path) -> None:
    """Take up the weights and the EMA of an earlier run (the optimizer starts anew)."""
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    average.module.load_state_dict(load_file(folder / "ema.safetensors"))


def save(
    options: argparse.Namespace, model: nn.Module, average: Average, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> None:
    for name, module in (("weights", model), ("ema", average.module)):
        state = {key: half(value) for key, value in module.state_dict().items()}
        save_file(state, options.work / f"{name}.safetensors")
    sides = (64,) if options.smoke else (256, 128)
    for side in sides:
        pictures = sampled(average.module, vae, tokenizer, side)
        sheet(pictures, 8).save(options.work / f"samples_{side}.png")


def half(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


@torch.no_grad()
def sampled(model: Denoising, vae: AutoencoderKL, tokenizer: CLIPTokenizer, side: int, guidance: float = 3.0) -> Tensor:
    """(16, 3, side, side): SAMPLE_PROMPTS with the shipped scheduler, 20 steps, always the same noise."""
    device = next(model.parameters()).device
    scheduler = networks.scheduler()
    scheduler.set_timesteps(20, device=device)
    texts = [*SAMPLE_PROMPTS, *[""] * len(SAMPLE_PROMPTS)]
    tokens = torch.tensor(tokenizer(texts, padding="max_length", max_length=77).input_ids, device=device)
    shape = (len(SAMPLE_PROMPTS), 4, side // 8, side // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    latents = latents * scheduler.init_noise_sigma
    with torch.autocast(device.type, torch.bfloat16):
        for timestep in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            told, untold = model(doubled, timestep.expand(len(texts)), tokens).float().chunk(2)
            latents = scheduler.step(untold + guidance * (told - untold), timestep, latents).prev_sample
        return torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(16)])


def main() -> None:
    parser = trainer_parser(__doc__, minutes=10, rate=1.2e-3)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--save-minutes", type=float, default=2)
    parser.add_argument("--warm-compile", action="store_true", help="only fill the compiler's cache")
    options = parser.parse_args()
    prepare(options)
    train(options)


if __name__ == "__main__":
    main()
