"""Model folders that are not what they must be, made at random from a good one, and a process that opens them.

Makes .safetensors files, configs and indexes that are damaged, mutated or something else in disguise. Knows not who is
to refuse them. Run as a program it opens a number of mutants and tells as JSON how each ended.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tree = dict[str, Any]
WORDS = (
    None, True, -1, 0, 1, 2, 3, 7, 3.5, 1e-30, 10**6, 10**9, 10**30, -(10**18), 1e300, float("nan"), float("inf"),
    "x", "", "../../etc/passwd", "os.system", "relu", "🙂" * 50, [], {}, [0], [[]], [None], [-1, 32, 64], [32] * 3,
    [32, 32, 10**9], [1] * 1000, ["os", "system"], {"a": {"b": []}}, ["CrossAttnDownBlock2D"] * 40,
)  # fmt: skip
CODE: dict[str, Any] = {
    "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
    "custom_pipelines": {"evil": "evil.py"},
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "evil", "load_in_8bit": True},
    "_attn_implementation": "evil/kernel",
    "attn_implementation": "evil/kernel:run",
    "_class_name": "EvilPipeline",
    "architectures": ["EvilModel"],
    "model_type": "evil",
    "fusion_config": {"patch_embeddings": True},
    "_name_or_path": "evil/model",
    "__class__": "evil",
    "__init__": "evil",
    "kernel_config": "evil",
}
NONSENSE = (
    b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"NaN", b'{"a": NaN}',
    b'{"__metadata__": {"format": "pt"}}', b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}',
    b"\x00" * 64, b'"' + b"x" * 10**6,
    b'{"__metadata__": []}', b'{"a": 1e400}', b'{"a": ' + b"9" * 5000 + b"}", b"import os", b'{"_class_name": {}}',
)  # fmt: skip


class Evil:
    """What unpickling would run: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def parts(raw: bytes) -> tuple[Tree, bytes]:
    """Header and tensors of a .safetensors file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def length(raw: bytes, rng: random.Random) -> bytes:
    """Another length of the header."""
    old = int.from_bytes(raw[:8], "little")
    near = [old + d for d in (-8, -1, 1, 8)]
    far = [0, 1, 2, len(raw) - 8, len(raw) - 7, 2**20, 10**8, 2**31, 2**40, 2**63, 2**64 - 1, rng.getrandbits(64)]
    return rng.choice([*near, *far]).to_bytes(8, "little") + raw[8:]


def header_text(raw: bytes, rng: random.Random) -> bytes:
    """Something else where the header's JSON is, of the length that is told."""
    header, data = parts(raw)
    text = json.dumps(header).encode()
    kind = rng.randrange(4)
    if kind == 0:
        return joined(rng.choice(NONSENSE), data)
    if kind == 1:
        flipped = bytearray(text)
        for at in rng.sample(range(len(flipped)), rng.choice([1, 2, 8, 64])):
            flipped[at] ^= 1 << rng.randrange(8)
        return joined(bytes(flipped), data)
    if kind == 2:
        return joined(text[: rng.randrange(len(text))], data)
    many = b"{" + b",".join(b'"%d":{}' % k for k in range(rng.choice([10, 200_000]))) + b"}"
    return joined(many, data)


def entry(raw: bytes, rng: random.Random) -> bytes:
    """One field of one tensor's entry, the entry as a whole, or the metadata."""
    header, data = parts(raw)
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.randrange(8)
    if kind < 5:
        field, values = rng.choice(FIELDS)
        header[name][field] = rng.choice(values)
    elif kind == 5:
        del header[name][rng.choice(list(header[name]))]
    elif kind == 6:
        header[name] = rng.choice(WORDS)
    else:
        header["__metadata__"] = rng.choice([[], 1, {"a": 1}, {"a": {}}, "x", {"format": "tf"}, None])
    return joined(json.dumps(header).encode(), data)


FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("dtype", ("F64", "F16", "BF16", "I32", "U8", "F8_E4M3", "f32", "F33", "", None, 32, ["F32"], "C64")),
    ("shape", ([], [0], [-1], [32, -32], [2**40, 2**40], [2**63], [1] * 100, [1.5], ["32"], None, {}, [[3]])),
    ("data_offsets", ([0, 0], [0, 4], [4, 0], [-4, 4], [0, 2**62], [0], [0, 4, 8], None, "0-4", [0.5, 4], [{}])),
    ("extra", (1, "x", None)),
)


def names(raw: bytes, rng: random.Random) -> bytes:
    """A tensor less, a tensor twice, a tensor under another name, or two names exchanged."""
    header, data = parts(raw)
    keys = [key for key in header if key != "__metadata__"]
    one, two = rng.sample(keys, 2)
    kind = rng.randrange(4)
    if kind == 0:
        del header[one]
    elif kind == 1:
        header[f"{one}_too"] = header[one]
    elif kind == 2:
        header[rng.choice(["", "../../x", "\x00", "x" * 10**6, "__class__", "weight", "🙂"])] = header.pop(one)
    else:
        header[one], header[two] = header[two], header[one]
    return joined(json.dumps(header).encode(), data)


def cut(raw: bytes, rng: random.Random) -> bytes:
    """Bytes less or more."""
    at = rng.choice([0, 1, 7, 8, 9, rng.randrange(len(raw)), len(raw) - 1])
    return raw[:at] if rng.random() < 0.8 else raw + rng.randbytes(rng.randrange(1, 64))


FORMATS = (
    b"\x93NUMPY\x01\x00v\x00{", b"GGUF\x03\x00\x00\x00", b"\x89HDF\r\n\x1a\n", b"\x7fELF\x02\x01\x01", b"<html>",
    b"#!/bin/sh\nmkdir touched\n", b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip


def disguised(_raw: bytes, rng: random.Random, touched: Path = Path("touched")) -> bytes:
    """A pickle, torch's own zip of one, or another format."""
    import io

    import torch

    kind = rng.randrange(6)
    if kind == 0:
        return pickle.dumps(Evil(touched), protocol=rng.choice([0, 2, 4, 5]))
    if kind == 1:
        file = io.BytesIO()
        torch.save({"state_dict": Evil(touched)}, file)
        return file.getvalue()
    return rng.choice(FORMATS) + rng.randbytes(rng.choice([0, 8, 1000]))


def bits(raw: bytes, rng: random.Random) -> bytes:
    """A few bits anywhere in the header."""
    changed = bytearray(raw)
    for at in rng.sample(range(8 + int.from_bytes(raw[:8], "little")), rng.choice([1, 1, 2, 8])):
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


WEIGHT_KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    length, header_text, entry, entry, entry, names, cut, disguised, bits,
)  # fmt: skip


def config(raw: bytes, rng: random.Random) -> bytes:
    """A key less, another value, code, or no config at all."""
    tree = json.loads(raw)
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(NONSENSE)
    if kind == 1:
        return raw[: rng.randrange(len(raw))]
    if kind == 2:
        del tree[rng.choice(list(tree))]
    elif kind in (3, 4):
        key = rng.choice(list(CODE))
        tree[key] = CODE[key]
    elif kind == 5:
        tree[rng.choice(["..", "../unet", "a/b", "", "évil", "__init__", "os"])] = rng.choice(
            [["diffusers", "UNet2DConditionModel"], ["os", "system"], ["evil", "Model"], [None, None], WORDS[3]]
        )
    elif kind == 6:
        for key in rng.sample(list(tree), min(3, len(tree))):
            tree[key] = rng.choice(WORDS)
    else:
        tree[rng.choice(list(tree))] = rng.choice(WORDS)
    return json.dumps(tree).encode()


def shards(folder: Path, rng: random.Random) -> None:
    """An index of shards in place of the one file, with names that lead elsewhere or nowhere."""
    (folder / "diffusion_pytorch_model.safetensors").rename(folder.parent / "stolen.safetensors")
    name = rng.choice(["../stolen.safetensors", "/etc/passwd", "none.safetensors", "..", "", "config.json", 3, None])
    index = {"metadata": {"total_size": 1}, "weight_map": rng.choice([{"conv_in.weight": name}, [], {}, None])}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


CHECKPOINT = "model.safetensors"


def targets(good: Path) -> list[str]:
    """The files of a model that are changed: weights, configs and the index."""
    found = [*good.glob("*/*.safetensors"), *good.glob("*/config.json"), *good.glob("*/scheduler_config.json")]
    return sorted(path.relative_to(good).as_posix() for path in (*found, good / "model_index.json"))


def mutant(good: Path, folder: Path, rng: random.Random) -> tuple[str, str]:
    """Write a folder that differs from the good one in one file; that file, and what was done to it.

    Every sixth is a single checkpoint, whose configs are the good one's.
    """
    if rng.random() < 1 / 6:
        folder.mkdir(parents=True)
        kind = rng.choice(WEIGHT_KINDS)
        (folder / CHECKPOINT).write_bytes(kind(good.with_suffix(".safetensors").read_bytes(), rng))
        return CHECKPOINT, kind.__name__
    shutil.copytree(good, folder, copy_function=os.link)
    (folder / "evil.py").write_text("import os; os.mkdir('touched')\n")
    target = rng.choice(targets(good))
    if target.startswith("unet/diff") and rng.random() < 0.1:
        shards(folder / "unet", rng)
        return target, "shards"
    change = rng.choice(WEIGHT_KINDS) if target.endswith(".safetensors") else config
    raw = (folder / target).read_bytes()
    (folder / target).unlink()
    (folder / target).write_bytes(change(raw, rng))
    return target, change.__name__


def opened(good: Path, folder: Path, target: str) -> None:
    """Open the model and the component that the target belongs to."""
    import torch

    from export.components import load
    from export.families import open_model
    from export.origin import open_source

    if target == CHECKPOINT:
        folder = open_source(str(folder / CHECKPOINT), folder, config=str(good)).folder
    open_model(folder)
    part = target.split("/", maxsplit=1)[0]
    for name in [name for name in KINDS if (folder / name).is_dir()] if target == CHECKPOINT else KINDS.keys() & {part}:
        module = load(KINDS[name](), folder / name, torch.float16)
        assert all(not weight.is_meta for weight in module.parameters())


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL


def _text() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel


def _second() -> Any:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection


KINDS: dict[str, Callable[[], Any]] = {"unet": _unet, "vae": _vae, "text_encoder": _text, "text_encoder_2": _second}
FORBIDDEN = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec", "socket.connect",
             "pickle.find_class", "ctypes.dlopen")  # fmt: skip


def main(sources: list[Path], place: Path, seed: int, count: int) -> None:
    """Open mutants of the sources in turn; one JSON line each, and one with the peaks."""
    from engine.errors import ZturboError
    from tests.single_checkpoint import save_checkpoint

    goods = [Path(shutil.copytree(source, place / f"good{k}")) for k, source in enumerate(sources)]
    for good in goods:
        save_checkpoint(good, good.with_suffix(".safetensors"))
        shutil.copyfile(good.with_suffix(".safetensors"), place / CHECKPOINT)
        opened(good, place, CHECKPOINT)
    place = place / "mutants"
    events: list[str] = []
    sys.addaudithook(lambda event, _arguments: events.append(event) if event in FORBIDDEN else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in range(count):
        rng, good = random.Random(f"{seed} {at}"), goods[at % len(goods)]
        folder = place / str(at)
        target, kind = mutant(good, folder, rng)
        begun = time.process_time()
        try:
            opened(good, folder, target)
            ended, words = "opened", ""
        except ZturboError as error:
            ended, words = "refused", str(error)
        except Exception as error:  # noqa: BLE001
            ended, words = "crashed", f"{type(error).__name__}: {error}"
        seconds = time.process_time() - begun
        shutil.rmtree(folder)
        print(json.dumps([at, target, kind, ended, words, round(seconds, 3)]))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"events": events, "grown_mib": grown}))


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[4:]], Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
