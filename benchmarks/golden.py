"""One sheet of pictures for each thing a request can ask, by models/emoji: looked at, kept, and compared with later.

    python -m benchmarks.golden trt_models/emoji --out docs/golden

Each is a function from a pipeline to captioned pictures, so that a test can paint a sheet again and measure how far it
is from the one that is kept. Nothing is picked: the first seeds are shown, failures too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from engine.errors import ZturboError
from runtime.images import contact_sheet, save_png
from runtime.pipeline import Pipeline
from runtime.request import Request

Tiles = list[tuple[str, Image.Image]]
FOX = "a fox on a teal background"
PAIR = "a cat left of a pizza on white"
COLUMNS, STEPS, SIDE = 6, 20, 256
NAMES = (
    "Euler", "Euler a", "DDIM", "DPM++ 2M Karras", "DPM++ SDE", "UniPC", "Heun", "DPM2 a", "LMS", "PLMS", "DEIS", "LCM",
)  # fmt: skip


def schedulers(pipeline: Pipeline) -> Tiles:
    """Twelve of them, by the web UI's names."""
    return _each(pipeline, ((name, Request(prompt=FOX, scheduler=name, num_inference_steps=STEPS)) for name in NAMES))


def steps(pipeline: Pipeline) -> Tiles:
    """The default scheduler from 1 to 100 steps."""
    counts = (1, 2, 4, 8, 20, 100)
    return _each(pipeline, ((f"{n} steps", Request(prompt=FOX, num_inference_steps=n)) for n in counts))


def guidance(pipeline: Pipeline) -> Tiles:
    """One request, a scale for each picture; 1 is unguided and takes one row of the batch."""
    scales = (1.0, 1.5, 3.0, 5.0, 8.0, 12.0)
    request = Request(prompt=FOX, guidance_scale=scales, seed=[3] * len(scales))
    return _zipped(pipeline, request, [f"guidance {scale:g}" for scale in scales])


def seeds(pipeline: Pipeline) -> Tiles:
    """One request, a seed for each picture."""
    return _zipped(pipeline, Request(prompt=FOX, seed=range(6)), [f"seed {seed}" for seed in range(6)])


def eta(pipeline: Pipeline) -> Tiles:
    """Noise in the steps: none and all of it."""
    asked = (("DDIM", 0.0), ("DDIM", 1.0), ("TCD", 0.0), ("TCD", 0.3), ("TCD", 1.0))
    requests = ((f"{name} eta {value:g}", Request(prompt=FOX, scheduler=name, eta=value)) for name, value in asked)
    return _each(pipeline, requests)


def emphasis(pipeline: Pipeline) -> Tiles:
    """Weights on one word of two, and brackets taken literally."""
    texts = (PAIR, "a (cat:1.4) left of a pizza on white", "a cat left of a (pizza:1.4) on white",
             "a (cat:0.6) left of a pizza on white", "a cat BREAK a pizza on white")  # fmt: skip
    tiles = _each(pipeline, ((text, Request(prompt=text, seed=1)) for text in texts))
    literal = Request(prompt=texts[1], seed=1, emphasis=False)
    return [*tiles, *_each(pipeline, [("(cat:1.4), taken literally", literal)])]


def clip_skip(pipeline: Pipeline) -> Tiles:
    """Last layers of the text encoder left out; the model was taught with all of them."""
    return _each(pipeline, ((f"clip skip {k}", Request(prompt=FOX, clip_skip=k)) for k in range(2)))


def long_prompts(pipeline: Pipeline) -> Tiles:
    """What matters stands in the first chunk of 75 tokens, or in the second."""
    filler = "plain, flat, " * 20
    texts = {
        "one chunk": FOX,
        "two chunks, the fox first": f"{FOX}, {filler}",
        "the fox in the second": f"{filler}{FOX}",
    }
    return _each(pipeline, ((name, Request(prompt=text, seed=1)) for name, text in texts.items()))


def negative_prompts(pipeline: Pipeline) -> Tiles:
    """What should not be there."""
    texts = ("", "teal background", "a fox", "red background")
    return _each(pipeline, ((f"not: {t or '-'}", Request(prompt=FOX, negative_prompt=t, seed=1)) for t in texts))


def image_to_image(pipeline: Pipeline) -> Tiles:
    """From a red square on yellow to an apple, by strength."""
    base = Image.new("RGB", (SIDE, SIDE), (250, 220, 90))
    ImageDraw.Draw(base).ellipse([72, 72, 184, 184], fill=(190, 40, 40))
    asked = (0.2, 0.4, 0.6, 0.8, 1.0)
    prompt = "a red apple on a yellow background"
    requests = ((f"strength {s:g}", Request(prompt=prompt, image=base, strength=s, seed=2)) for s in asked)
    return [("the image", base), *_each(pipeline, requests)]


def inpainting(pipeline: Pipeline) -> Tiles:
    """The right half painted anew; the left stays."""
    base = pipeline.generate(Request(prompt=PAIR, seed=0)).images[0]
    mask = Image.new("L", base.size, 0)
    ImageDraw.Draw(mask).rectangle([SIDE // 2, 0, SIDE, SIDE], fill=255)
    prompts = (PAIR, "a cat left of a guitar on white", "a cat left of a robot on white")
    requests = [(text, Request(prompt=text, image=base, mask=mask, seed=5)) for text in prompts]
    return [("the image", base), ("the mask", mask.convert("RGB")), *_each(pipeline, requests)]


def previews(pipeline: Pipeline) -> Tiles:
    """A linear map of the latents after some steps, and the picture they become."""
    seen: Tiles = []

    def on_step(step: object) -> None:
        index, preview = step.index, step.preview  # type: ignore[attr-defined]
        if index in (1, 5, 10, 15, 20):
            small = Image.fromarray(preview()[0])
            seen.append((f"after step {index}", small.resize((SIDE, SIDE), Image.Resampling.NEAREST)))

    picture = pipeline.generate(Request(prompt=FOX, num_inference_steps=STEPS, seed=1), on_step).images[0]
    return [*seen, ("the picture", picture)]


FEATURES: dict[str, Callable[[Pipeline], Tiles]] = {
    feature.__name__.replace("_", "-"): feature
    for feature in (
        schedulers, steps, guidance, seeds, eta, emphasis, clip_skip, long_prompts, negative_prompts, image_to_image,
        inpainting, previews,
    )
}  # fmt: skip


def sheet(tiles: Tiles) -> Image.Image:
    """The tiles in rows of COLUMNS, each over its caption."""
    captions, images = zip(*tiles, strict=True)
    return contact_sheet(images, captions, min(COLUMNS, len(images)))


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference in grey levels; infinite where sizes differ."""
    if one.size != other.size:
        return float("inf")
    a, b = (np.asarray(image.convert("RGB"), np.int16) for image in (one, other))
    return float(np.abs(a - b).mean())


def _each(pipeline: Pipeline, requests: Iterable[tuple[str, Request]]) -> Tiles:
    return [(caption, pipeline.generate(request).images[0]) for caption, request in requests]


def _zipped(pipeline: Pipeline, request: Request, captions: Sequence[str]) -> Tiles:
    return list(zip(captions, pipeline.generate(request).images, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Paint and save; returns the exit code: 0, or 2 where it failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/golden"))
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--feature", nargs="+", choices=list(FEATURES), default=list(FEATURES))
    options = parser.parse_args(arguments)
    try:
        with Pipeline.load(options.bundle, options.backend) as pipeline:
            for name in options.feature:
                save_png(sheet(FEATURES[name](pipeline)), options.out / f"{name}.png")
                print(options.out / f"{name}.png")
    except ZturboError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
