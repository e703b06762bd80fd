"""Train the autoencoder on composites: L1 at three scales, gradients, a small KL term.

    python -m train.vae --work DIR --minutes 5.4
    python -m train.vae --work DIR --minutes 6.4 --decoder-only --resume DIR/vae_state.safetensors

The second run sharpens the decoder and leaves the latents as they are; it may run beside the denoiser's.
Needs DIR/sprites.npz (train.sprites). Writes DIR/vae (diffusers layout, EMA, scaling_factor measured),
DIR/vae_state.safetensors (weights and EMA to resume from) and DIR/vae.png (originals above decoded).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train import networks, sprites
from train.clock import Average, Clock, Log
from train.compose import Compositor, sample_scenes
from train.options import prepare, trainer_parser

KL_WEIGHT = 6e-4
FOREGROUND_WEIGHT = 3.0
SIZES = ((256, 64), (256, 64), (128, 192))  # (side in pixels, batch), in turn
SMOKE_SIZES = ((64, 2), (32, 2))


class Reconstruction(nn.Module):
    """Encode, sample, decode and measure, as one module so that it compiles as one."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor, cover: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(picture)).chunk(2, dim=1)
        log_variance = log_variance.float().clamp(-30, 20)
        mean = mean.float()
        latents = mean + (0.5 * log_variance).exp() * noise
        decoded = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(decoded, picture, cover), kl


def reconstruction_loss(decoded: Tensor, picture: Tensor, cover: Tensor) -> Tensor:
    """Weighted L1 at full, half and quarter size, plus L1 of the finite differences."""
    weight = 1 + FOREGROUND_WEIGHT * cover
    weight = weight / weight.mean()
    error = decoded - picture
    loss = (error.abs() * weight).mean()
    loss = loss + (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    loss = loss + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    for factor in (2, 4):
        loss = loss + 0.5 * F.avg_pool2d(error, factor).abs().mean()
    return loss


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    compositor = Compositor(sprites.load(options.work), device)
    generator = torch.Generator(device).manual_seed(options.seed)
    model = Reconstruction(networks.autoencoder()).to(device, memory_format=torch.channels_last)
    average = Average(model, 0.998)
    if options.resume is not None:
        resume(model, average, options.resume, average_only=options.decoder_only)
    if options.decoder_only:
        model.vae.encoder.requires_grad_(False)
        model.vae.quant_conv.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    forward = torch.compile(model, dynamic=False) if options.compile else model
    clock = Clock(options.minutes, options.rate, 200)
    log = Log(options.work / "vae.jsonl", clock)
    sizes = SMOKE_SIZES if options.smoke else SIZES
    step, saved = 0, 0.0
    while clock.fraction < 1 and not (options.smoke and step >= 4):
        side, batch = sizes[step % len(sizes)]
        with torch.no_grad():
            picture, cover = compositor.draw(sample_scenes(batch, generator), side)
        noise = torch.randn(batch, 4, side // 8, side // 8, device=device, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            loss, kl = forward(picture.contiguous(memory_format=torch.channels_last), cover, noise)
        (loss + KL_WEIGHT * kl).backward()
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(step)
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        log.add(loss=loss, kl=kl, norm=norm)
        step += 1
        if step % 100 == 0 or options.smoke:
            log.write(step)
        if clock.spent_minutes - saved > 1.5:
            saved = clock.spent_minutes
            save(options, model, average, compositor)
    save(options, model, average, compositor)
    print(f"vae: {step} steps in {clock.spent_minutes:.2f} minutes", flush=True)


def resume(model: nn.Module, average: Average, path: Path, average_only: bool) -> None:
    """Take up the weights and the EMA of an earlier run (the optimizer starts anew).

    average_only: go on from the EMA itself, so that its encoder, which made the denoiser's latents, stays.
    """
    state = load_file(path)
    for prefix, module in (("ema." if average_only else "weights.", model), ("ema.", average.module)):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        module.load_state_dict(own)


@torch.no_grad()
def save(options: argparse.Namespace, model: nn.Module, average: Average, compositor: Compositor) -> None:
    state = {f"weights.{name}": value.contiguous() for name, value in model.state_dict().items()}
    state |= {f"ema.{name}": value.contiguous() for name, value in average.module.state_dict().items()}
    save_file(state, options.work / "vae_state.safetensors")
    vae = average.module.vae
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(1)
    side = 64 if options.smoke else 256
    rows = 8 if options.smoke else 512
    picture, _ = compositor.draw(sample_scenes(rows, generator), side)
    with torch.autocast(device.type, torch.bfloat16):
        latents = torch.cat([vae.encode(part).latent_dist.mean.float() for part in picture.split(64)])
        decoded = vae.decode(latents[:24]).sample.float()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(options.work / "vae")
    error = (decoded.clamp(-1, 1) - picture[:24]).square().mean().item()
    means = [round(float(each), 3) for each in latents.mean((0, 2, 3))]
    print(f"saved: scaling_factor {vae.config.scaling_factor}, mse {error:.6f}, latent means {means}", flush=True)
    sheet(torch.cat([picture[:8], decoded[:8], picture[8:16], decoded[8:16]]), 8).save(options.work / "vae.png")


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """(N, 3, H, W) in -1..1 -> one RGB picture, row by row."""
    grid = (pictures.float().clamp(-1, 1).add(1).mul(127.5)).round().byte().permute(0, 2, 3, 1).cpu()
    rows = [torch.cat(list(grid[start : start + columns]), dim=1) for start in range(0, len(grid), columns)]
    return Image.fromarray(torch.cat(rows, dim=0).numpy())


def main() -> None:
    parser = trainer_parser(__doc__, minutes=6.5, rate=1.5e-3)
    parser.add_argument("--decoder-only", action="store_true", help="leave the latents as they are")
    options = parser.parse_args()
    prepare(options)
    train(options)


if __name__ == "__main__":
    main()
