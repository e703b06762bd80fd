"""Judges the emoji model: does a picture show the object and the background its prompt asked for?

    python models/emoji/judge.py

First the matcher's own accuracy, on clean composites and on composites that went through the VAE; then
top-1 on generated pictures of seen and of held-out (object, background) pairs. Fixed seeds. The last line
printed is JSON; `object` and `background` in it are those of the held-out pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from matcher import COLUMNS, TEMPLATES, TILE_PX, Matcher, Verdict  # noqa: E402
from PIL import Image  # noqa: E402
from world import (  # noqa: E402
    BACKGROUND_WORDS,
    BACKGROUNDS,
    OBJECT_WORDS,
    SCALES,
    WANDER,
    held_out_pairs,
    plain_prompt,
    seen_pairs,
    with_article,
)

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Score:
    """Top-1 rates and the mean score over `count` pictures; `missed` are (asked pair, verdict)."""

    count: int
    object: float
    background: float
    both: float
    match: float
    missed: tuple[tuple[Pair, Verdict], ...]


def ordered(pairs: frozenset[Pair], count: int) -> list[Pair]:
    """The first `count` pairs in an order fixed by their sha256."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(b"judge|" + "|".join(pair).encode()).digest())[:count]


def score(matcher: Matcher, asked: Sequence[Pair], pictures: Iterator[Image.Image], title: str) -> Score:
    verdicts = []
    for number, picture in enumerate(pictures, start=1):
        verdicts.append(matcher.look(picture))
        if number % 20 == 0 or number == len(asked):
            print(f"\r{title}: {number}/{len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    objects = [verdict.object == word for (word, _), verdict in zip(asked, verdicts, strict=True)]
    grounds = [verdict.background == ground for (_, ground), verdict in zip(asked, verdicts, strict=True)]
    both = [a and b for a, b in zip(objects, grounds, strict=True)]
    missed = tuple((pair, verdict) for pair, verdict, good in zip(asked, verdicts, both, strict=True) if not good)
    count = len(asked)
    match = sum(verdict.score for verdict in verdicts) / count
    result = Score(count, sum(objects) / count, sum(grounds) / count, sum(both) / count, match, missed)
    print(
        f"{title:<28} {count:>4} pictures   object {result.object:.3f}   background {result.background:.3f}"
        f"   match {match:.3f}"
    )
    return result


def composites(sprites: dict[str, Image.Image], pairs: Sequence[Pair], side_px: int) -> Iterator[Image.Image]:
    """Each pair drawn as the training pictures are: named colour, object at a usual size, a little off centre."""
    rng = random.Random(0)
    for word, ground in pairs:
        canvas = Image.new("RGB", (side_px, side_px), BACKGROUNDS[ground])
        object_px = round(rng.uniform(*SCALES["normal"]) * side_px)
        sprite = sprites[word].convert("RGBa").resize((object_px, object_px), Image.Resampling.BICUBIC).convert("RGBA")
        wander = [rng.uniform(-WANDER["normal"], WANDER["normal"]) for _ in range(2)]
        left, top = (round((0.5 + shift) * side_px - object_px / 2) for shift in wander)
        canvas.paste(sprite, (left, top), sprite)
        yield canvas


def shipped_sprites() -> dict[str, Image.Image]:
    """The 64-pixel tiles that the templates come from."""
    sheet = Image.open(TEMPLATES).convert("RGBA")
    sprites = {}
    for index, word in enumerate(OBJECT_WORDS):
        row, column = divmod(index, COLUMNS)
        box = (column * TILE_PX, row * TILE_PX, (column + 1) * TILE_PX, (row + 1) * TILE_PX)
        sprites[word] = sheet.crop(box)
    return sprites


def full_sprites(work: Path) -> dict[str, Image.Image]:
    """The 256-pixel sprites the model was trained on, where `python -m train.sprites` has put them."""
    from train.sprites import load

    return dict(zip(OBJECT_WORDS, map(Image.fromarray, load(work)), strict=True))


def through_vae(pictures: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """Each picture encoded and decoded by the shipped autoencoder, in fp32."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's idle threads would spin beside the matcher
    import numpy as np
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(HERE / "vae", dtype=torch.float32).eval()
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample[0]
        yield Image.fromarray(decoded.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())


def generated(prompts: Sequence[str], first_seed: int, options: argparse.Namespace) -> Iterator[Image.Image]:
    """One picture a prompt, through zturbo's public API; picture i has seed first_seed + i."""
    from zturbo import Pipeline, Request

    with Pipeline.load(options.bundle, backend=options.backend) as pipeline:
        for index, prompt in enumerate(prompts):
            request = Request(
                prompt=prompt,
                height=options.size,
                width=options.size,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                seed=first_seed + index,
                **({} if options.scheduler is None else {"scheduler": options.scheduler}),
            )
            yield pipeline.generate(request).images[0]


def generated_by_diffusers(
    prompts: Sequence[str], first_seed: int, options: argparse.Namespace
) -> Iterator[Image.Image]:
    """The same through diffusers' eager pipeline: other noise for the same seed, slower, needs no bundle."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(HERE, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), 8):
        part = prompts[start : start + 8]
        seeds = range(first_seed + start, first_seed + start + len(part))
        yield from pipeline(
            part,
            height=options.size,
            width=options.size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images


def scenes_of_two(matcher: Matcher, options: argparse.Namespace) -> float:
    """How many of `options.scenes` random scenes of two show both objects, each on its side."""
    rng = random.Random(0)
    scenes = [(*rng.sample(OBJECT_WORDS, 2), rng.choice(BACKGROUND_WORDS)) for _ in range(options.scenes)]
    prompts = []
    for index, (first, second, ground) in enumerate(scenes):
        relation = "above" if index % 2 else "left of"
        prompts.append(f"{with_article(first)} {relation} {with_article(second)} on {ground}")
    make = generated_by_diffusers if options.backend == "diffusers" else generated
    right = 0
    for index, picture in enumerate(make(prompts, 300_000, options)):
        found = matcher.look_at_two(picture, stacked=index % 2 == 1)
        right += found == scenes[index][:2]
        if found != scenes[index][:2]:
            print(f"{prompts[index]}: seen as {found[0]} and {found[1]}")
    print(f"{'generated, scenes of two':<28} {len(scenes):>4} pictures   both objects {right / len(scenes):.3f}")
    return right / len(scenes)


def report_misses(title: str, result: Score) -> None:
    if not result.missed:
        return
    worst = Counter(pair[0] for pair, verdict in result.missed if verdict.object != pair[0])
    print(f"{title}, missed: " + "; ".join(
        f"{word} on {ground} seen as {verdict.object} on {verdict.background}"
        for (word, ground), verdict in result.missed[:40]
    ))  # fmt: skip
    print(f"{title}, objects missed most: {dict(worst.most_common(8))}")


def judge_itself(matcher: Matcher, options: argparse.Namespace) -> dict[str, float]:
    """The matcher's accuracy where the truth is known: composites, and composites through the VAE."""
    sprites = shipped_sprites() if options.sprites is None else full_sprites(options.sprites)
    rotating = [(word, BACKGROUND_WORDS[i % len(BACKGROUND_WORDS)]) for i, word in enumerate(OBJECT_WORDS)]
    every = sorted(seen_pairs() | held_out_pairs()) if options.thorough else rotating
    clean = score(matcher, every, composites(sprites, every, options.size), "judge, clean composites")
    report_misses("clean", clean)
    pictures = through_vae(composites(sprites, rotating, options.size))
    decoded = score(matcher, rotating, pictures, "judge, through the VAE")
    report_misses("through the VAE", decoded)
    return rates(clean, "clean_") | rates(decoded, "decoded_")


def judge_model(matcher: Matcher, options: argparse.Namespace) -> dict[str, float]:
    make = generated_by_diffusers if options.backend == "diffusers" else generated
    found: dict[str, float] = {}
    for title, prefix, pairs, seed in (
        ("seen", "seen_", seen_pairs(), 100_000),
        ("held-out", "", held_out_pairs(), 200_000),
    ):
        asked = ordered(pairs, options.count)
        pictures = make([plain_prompt(*pair) for pair in asked], seed, options)
        result = score(matcher, asked, pictures, f"generated, {title} pairs")
        report_misses(title, result)
        found |= rates(result, prefix) | {f"{prefix}count": result.count}
    if options.scenes:
        found["scenes_of_two"] = round(scenes_of_two(matcher, options), 4)
    return found


def rates(result: Score, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": round(getattr(result, name), 4) for name in ("object", "background", "both", "match")}


def check(options: argparse.Namespace) -> None:
    """Raise a ZturboError for what could only fail after minutes of judging."""
    from engine.bundle import load_bundle
    from engine.errors import OptionInvalid
    from zturbo import Request

    if not 1 <= options.count <= len(held_out_pairs()):
        raise OptionInvalid(
            "judge, --count", actual=str(options.count), allowed=f"1 to {len(held_out_pairs())}",
            remedy="That many pairs are held out.",
        )  # fmt: skip
    Request(
        prompt="a cat", height=options.size, width=options.size, num_inference_steps=options.steps,
        guidance_scale=options.guidance, scheduler=options.scheduler,
    )  # fmt: skip
    if options.size < TILE_PX or options.size % 8:
        raise OptionInvalid(
            "judge, --size", actual=str(options.size), allowed=f"{TILE_PX} or more, in multiples of 8",
            remedy="The model was trained at 128 and 256.",
        )  # fmt: skip
    if options.backend != "diffusers":
        load_bundle(options.bundle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=HERE.parents[1] / "trt_models" / "emoji")
    parser.add_argument("--backend", default="onnxruntime", help="a zturbo backend, or 'diffusers' (needs no bundle)")
    parser.add_argument("--count", type=int, default=200, help="pictures of each kind (at most 216 are held out)")
    parser.add_argument("--scenes", type=int, default=0, help="also this many scenes of two objects")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--scheduler", help="as zturbo names them; the model's own when left out")
    parser.add_argument("--sprites", type=Path, help="folder of train.sprites, for composites at full resolution")
    parser.add_argument("--thorough", action="store_true", help="judge the judge on all 1152 clean composites")
    options = parser.parse_args()
    check(options)
    started = time.monotonic()
    matcher = Matcher()
    itself = judge_itself(matcher, options)
    told = judge_model(matcher, options) | itself
    asked = {"size": options.size, "steps": options.steps, "guidance_scale": options.guidance}
    asked |= {"backend": options.backend, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(told | asked))


if __name__ == "__main__":
    from engine.errors import ZturboError

    try:
        main()
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
