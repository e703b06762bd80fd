"""A whole bundle without torch or onnx: export's wires, real tables, a real tokenizer, and graphs of dummy bytes.

tests/fake_backend.py runs its graphs in numpy. The schedulers are three short formulas, one for each thing a table
can hold: `euler` scales the model's input, `ancestral` draws noise, `multistep` reads its history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.binding import Binding, Graph, Precision
from engine.bundle import FILE, VERSION, Bundle, encode_bundle, sealed
from engine.digest import file_sha256
from engine.schema import (
    Defaults,
    FileEntry,
    Latents,
    Limits,
    LoopCase,
    Reference,
    ReferenceCase,
    SchedulerEntry,
    Source,
    Tables,
)
from engine.tablefile import WARM_COLUMNS, packed
from engine.tokens import Chunked

COLUMNS = ("p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4", "c", "j", "s", "t", "u", "v")
ROWS, MAX_STEPS, MAX_TOKENS, MAX_CHUNKS, WIDTH = 200, 100, 77, 3, 32
LATENT = (4, "height/8", "width/8")
SHAPES: dict[str, tuple[str, tuple[int | str, ...], str]] = {
    "input_ids": ("int32", ("rows", "tokens"), "per_row"),
    "token_weights": ("float32", ("rows", "tokens"), "per_row"),
    "clip_skip": ("int32", ("rows",), "per_row"),
    "encoder_hidden_states": ("float32", ("rows", "tokens", WIDTH), "per_row"),
    "table": ("float32", ("samples", ROWS, len(COLUMNS)), "per_sample"),
    "noise": ("float32", ("samples", "draws", *LATENT), "per_sample"),
    "guidance_scale": ("float32", ("samples",), "per_sample"),
    "cond_row": ("int32", ("samples",), "per_sample"),
    "uncond_row": ("int32", ("samples",), "per_sample"),
    "sample_of_row": ("int32", ("rows",), "per_sample"),
    "image": ("uint8", ("samples", "height", "width", 3), "per_sample"),
    "image_noise": ("float32", ("samples", *LATENT), "per_sample"),
    "mask": ("float32", ("samples", 1, *LATENT[1:]), "per_sample"),
    "image_latents": ("float32", ("samples", *LATENT), "per_sample"),
    "latents": ("float32", ("samples", *LATENT), "carried"),
    "history": ("float32", ("samples", 4, *LATENT), "carried"),
    "row": ("int32", ("samples",), "carried"),
    "next_latents": ("float32", ("samples", *LATENT), "carried"),
    "next_history": ("float32", ("samples", 4, *LATENT), "carried"),
    "next_row": ("int32", ("samples",), "carried"),
    "sample": ("float32", ("rows", *LATENT), "transient"),
    "timestep": ("float32", ("rows",), "transient"),
    "noise_pred": ("float32", ("rows", *LATENT), "transient"),
    "images": ("uint8", ("samples", "height", "width", 3), "transient"),
    "preview": ("uint8", ("samples", *LATENT[1:], 3), "transient"),
}
HALVES = ("encoder_hidden_states", "sample", "noise_pred")
"""The wires that are float16 in the fp16 variant."""
SIGNATURES: dict[str, tuple[str, str, str]] = {
    "conditioning": ("once", "input_ids token_weights clip_skip", "encoder_hidden_states"),
    "encoder": ("once", "image image_noise", "image_latents"),
    "start": ("once", "table noise image_latents sample_of_row", "latents history row sample timestep"),
    "denoiser": ("loop", "sample timestep encoder_hidden_states", "noise_pred"),
    "solver": (
        "loop",
        (
            "noise_pred latents history row table noise guidance_scale cond_row uncond_row sample_of_row "
            "image_latents mask"
        ),
        "next_latents next_history next_row sample timestep",
    ),
    "decoder": ("final", "latents", "images"),
    "preview": ("preview", "latents", "preview"),
}


def write_bundle(folder: Path, precisions: Sequence[Precision] = ("fp32",)) -> Path:
    """Write the bundle and return its folder."""
    for precision in precisions:
        for name in SIGNATURES:
            path = folder / "graphs" / precision / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{precision} {name}".encode())
    np.savez(folder / "tables.npz", **packed(*tables()))
    latents = np.zeros((1, 4, 16, 16), np.float32)
    np.savez(folder / "reference.npz", **{"small/decoder/latents": latents, "loop/latents": latents})
    tokenizer().save(str(folder / "tokenizer.json"))
    variants = {p: tuple(graph(name, p) for name in SIGNATURES) for p in precisions}
    (folder / FILE).write_bytes(encode_bundle(sealed(description(folder, variants))))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json as someone would who then computes its hash and those of the files again."""
    body = json.loads((folder / FILE).read_bytes())
    body["files"] = {name: file_entry(folder / name) for name in body["files"] if (folder / name).is_file()}
    change(body)
    (folder / FILE).write_bytes(encode_bundle(sealed(msgspec.convert(body, Bundle))))


def description(folder: Path, variants: dict[Precision, tuple[Graph, ...]]) -> Bundle:
    """bundle.json of the files in the folder, not yet sealed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return Bundle(
        version=VERSION, sha256="", name=folder.name, family="sd", source=Source(path="../model", sha256="0" * 64),
        made_with={"torch": "0"}, latents=Latents(channels=4, factor=8),
        limits=Limits(min_px=128, max_px=512, multiple_px=8),
        defaults=Defaults(height=128, width=136, num_inference_steps=3, guidance_scale=5.0, scheduler="euler"),
        guidance_offset=0.0, guidance="classifier_free", max_clip_skip=1, tokenizer=Chunked(
            file="tokenizer.json", max_tokens=MAX_TOKENS, max_chunks=MAX_CHUNKS, bos_id=0, eos_id=1, pad_id=1,
        ),
        tables=Tables(file="tables.npz", rows=ROWS, columns=COLUMNS, schedulers={
            name: SchedulerEntry(
                class_name=f"{name.title()}Scheduler", settings={}, min_steps=1, max_steps=MAX_STEPS,
                aliases=(f"{name.title()}Scheduler", *ALIASES[name]), etas=ETAS[name], order=1, warm=WARM[name],
            ) for name in SCHEDULERS
        }, refused={"Restart": "it goes back up in noise"}),
        reference=Reference(file="reference.npz", cases=(
            ReferenceCase(name="small", dims={"samples": 1, "height": 128, "width": 128}, fp16_error={}),
        ), loop=LoopCase(dims={"samples": 1, "height": 128, "width": 128}, evaluations=4, fp16_error={})),
        variants=variants,
        files={path.relative_to(folder).as_posix(): FileEntry(**file_entry(path)) for path in files},
    )  # fmt: skip


def file_entry(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def graph(name: str, precision: Precision) -> Graph:
    stage, inputs, outputs = SIGNATURES[name]
    return Graph(
        name=name, stage=stage, file=f"graphs/{precision}/{name}.onnx",
        precision="fp32" if name in ("start", "solver", "preview") else precision,
        inputs=tuple(binding(wire, precision) for wire in inputs.split()),
        outputs=tuple(binding(wire, precision) for wire in outputs.split()),
        only_with=("image",) if name == "encoder" else (),
        carried={wire.removeprefix("next_"): wire for wire in outputs.split() if wire.startswith("next_")},
    )  # fmt: skip


def binding(name: str, precision: Precision) -> Binding:
    dtype, shape, lifetime = SHAPES[name]
    half = precision == "fp16" and name in HALVES
    return Binding(name=name, dtype="float16" if half else dtype, shape=shape, lifetime=lifetime)


@cache
def tokenizer() -> Tokenizer:
    """One token per byte; <s> and </s> are for the runtime to add."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: k for k, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def sigmas(steps: int) -> NDArray[np.float64]:
    """(steps + 1,): from 14 down to 0."""
    return np.append(np.geomspace(14.0, 0.1, steps), 0.0)


def table(scheduler: str, steps: int) -> NDArray[np.float32]:
    """(steps + 1, columns): row 0 starts the loop; see export/solver.py for the equation of the others."""
    levels, (step, s) = sigmas(steps), SCHEDULERS[scheduler]
    first = {"c": 14.0} if scheduler != "multistep" else {"c": 1.0}
    rows = [first, *(step(k, now, after) for k, (now, after) in enumerate(pairwise(levels)))]
    out = np.zeros((steps + 1, len(COLUMNS)), np.float32)
    for k, row in enumerate(rows):
        u, v = (1.0, levels[k]) if scheduler != "multistep" else (np.sqrt(1 - (levels[k] / 14) ** 2), levels[k] / 14)
        values = {**row, "s": s(levels[k]), "t": 1000 * levels[k] / 14, "u": u, "v": v}
        out[k] = [values.get(column, 0.0) for column in COLUMNS]
    return out


def tables() -> tuple[dict[str, list[NDArray[np.float32]]], dict[str, list[NDArray[np.float32]]]]:
    """All tables by key and step count, and the rows of late begins: a multistep's first one takes no history."""
    counts = range(1, MAX_STEPS + 1)
    at = [COLUMNS.index(column) for column in WARM_COLUMNS]
    first = table("multistep", 1)[1:, at]
    found = {f"{s}@{eta:g}" if k else s: [table(s, n) for n in counts] for s in SCHEDULERS
             for k, eta in enumerate(ETAS[s] or (0.0,))}  # fmt: skip
    return found, {"multistep": [np.repeat(first, n - 1, 0) for n in counts]}


def _euler(k: int, now: float, after: float) -> dict[str, float]:
    return {"a": 1.0, "d": after - now}


def _ancestral(k: int, now: float, after: float) -> dict[str, float]:
    """Down to a lower level, then up again by fresh noise; the last step draws none."""
    up = 0.5 * after
    down = np.sqrt(after**2 - up**2)
    return {"a": 1.0, "d": down - now, "c": up, "j": float(k + 1) if after else 0.0}


def _multistep(k: int, now: float, after: float) -> dict[str, float]:
    """m = x − 0.1·e; x' = 0.5·x + 0.5·m at first, then + 0.75·m − 0.25·m[-1]."""
    past = {"b0": 0.5} if k == 0 else {"b0": 0.75, "b1": -0.25}
    return {"p": 1.0, "q": -0.1, "a": 0.5, **past}


WARM = {"euler": 0, "ancestral": 0, "multistep": 1}
ETAS: dict[str, tuple[float, ...]] = {"euler": (), "ancestral": (1.0, 0.5), "multistep": ()}
ALIASES = {"euler": ("Euler",), "ancestral": ("Euler a",), "multistep": ("DPM++ 2M",)}
SCHEDULERS: dict[str, tuple[Callable[[int, float, float], dict[str, float]], Callable[[float], float]]] = {
    "euler": (_euler, lambda sigma: 1 / np.sqrt(sigma**2 + 1)),
    "ancestral": (_ancestral, lambda sigma: 1 / np.sqrt(sigma**2 + 1)),
    "multistep": (_multistep, lambda sigma: 1.0),
}
