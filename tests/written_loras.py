"""LoRA files written with numpy alone, whole and damaged, and a bundle's list of layers that they are for.

What reads them must refuse every damaged one with one error, in bounded memory.
"""

from __future__ import annotations

import json
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.schema import LoraInputs, LoraLayer

TYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "int64": "I64"}
Header = dict[str, Any]


def encoded(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> tuple[Header, bytes]:
    """The header and the data of a file; uint16 stands for bfloat16's bits."""
    header: Header = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": TYPES[str(array.dtype)], "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    return header, data


def raw_file(header: Header | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    path.write_bytes(raw_file(*encoded(tensors, metadata)))
    return path


def layers(sizes: Mapping[str, tuple[int, int]], rank: int) -> LoraInputs:
    """What a bundle says of layers of these (inputs, outputs), each with kohya's and peft's stem."""
    found, at = [], 0
    for name, (inputs, outputs) in sizes.items():
        aliases = (f"unet.{name}", f"lora_unet_{name.replace('.', '_')}")
        found.append(LoraLayer(name=name, aliases=aliases, inputs=inputs, outputs=outputs, down=at, up=at + inputs))
        at += inputs + outputs
    return LoraInputs(rank=rank, size=at, layers=tuple(found))


TINY = {"a.to_q": (8, 8), "a.to_k": (4, 8), "ff.net.2": (32, 8)}


def pair(name: str, rank: int, seed: int = 0, sizes: Mapping[str, tuple[int, int]] = TINY) -> dict[str, np.ndarray]:
    """A and B of a layer under kohya's names, float32."""
    rng, (inputs, outputs) = np.random.default_rng(seed), sizes[name]
    stem = f"lora_unet_{name.replace('.', '_')}"
    return {
        f"{stem}.lora_down.weight": rng.standard_normal((rank, inputs)).astype(np.float32),
        f"{stem}.lora_up.weight": rng.standard_normal((outputs, rank)).astype(np.float32),
    }


def whole(rank: int = 2, alpha: float | None = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """A file's tensors: every layer of TINY."""
    found: dict[str, np.ndarray] = {}
    for k, name in enumerate(TINY):
        found |= pair(name, rank, seed + k)
        if alpha is not None:
            found[f"lora_unet_{name.replace('.', '_')}.alpha"] = np.array(alpha, np.float32)
    return found


def mutant(kind: str, rng: random.Random) -> bytes:
    """A damaged file."""
    return MUTANTS[kind](rng)


def _with_header(change: Callable[[Header, str, random.Random], None]) -> Callable[[random.Random], bytes]:
    def made(rng: random.Random) -> bytes:
        header, data = encoded(whole(seed=rng.randrange(99)))
        change(header, rng.choice(list(header)), rng)
        return raw_file(header, data)

    return made


def _with_tensors(
    change: Callable[[dict[str, np.ndarray], str, random.Random], None],
) -> Callable[[random.Random], bytes]:
    def made(rng: random.Random) -> bytes:
        tensors = whole(seed=rng.randrange(99))
        change(tensors, rng.choice([key for key in tensors if "alpha" not in key]), rng)
        return raw_file(*encoded(tensors))

    return made


def _dtype(header: Header, key: str, rng: random.Random) -> None:
    header[key]["dtype"] = rng.choice(["F8_E4M3", "BOOL", "U8", "C64", "", 7, None, "F64", "F16", ["F32"]])


def _shape(header: Header, key: str, rng: random.Random) -> None:
    header[key]["shape"] = rng.choice(
        [[1 << 62, 4], [-1, 8], [0, 8], [2, 9], [1.5], "2,8", None, [1] * 20, [True, 8], [1 << 32, 1 << 32], {}]
    )


def _offsets(header: Header, key: str, rng: random.Random) -> None:
    begin, end = header[key]["data_offsets"]
    header[key]["data_offsets"] = rng.choice(
        [[end, begin], [begin - 4, end - 4], [begin + 4, end + 4], [0, 1 << 60], [begin], [begin, end, end],
         [begin, -1], [float(begin), float(end)], None, [begin, end + 4]]
    )  # fmt: skip


def _rename(header: Header, key: str, rng: random.Random) -> None:
    new = rng.choice([
        "", "x", key + ".x", key.replace("lora_unet_", "lora_vae_"), "../" + key,
        "lora_unet_a_to_v" + key[-17:], key.upper(),
        key.replace(".", "_"), "unet.other.layer.lora_A.weight", "\ud800" + key,
    ])  # fmt: skip
    header[new] = header.pop(key)


def _extra_field(header: Header, key: str, rng: random.Random) -> None:
    header[key] = rng.choice([None, [], 3, "F32", {**header[key], "more": 1}, {"dtype": "F32"}])


def _metadata(header: Header, _: str, rng: random.Random) -> None:
    header["__metadata__"] = rng.choice([
        3, [], {"a": 3}, {"a": None}, {"lora_adapter_metadata": "{"}, {"lora_adapter_metadata": "[]"},
        {"lora_adapter_metadata": '{"unet.lora_alpha": "many"}'},
        {"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'},
        {"lora_adapter_metadata": '{"unet.r": 4}'}, {"lora_adapter_metadata": "[" * 100000},
        {"lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.use_dora": true}'},
        {"lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"a": null}}'},
    ])  # fmt: skip


def _not_finite(tensors: dict[str, np.ndarray], key: str, rng: random.Random) -> None:
    tensors[key].flat[rng.randrange(tensors[key].size)] = rng.choice([np.nan, np.inf, -np.inf])


def _alpha(tensors: dict[str, np.ndarray], key: str, rng: random.Random) -> None:
    stem = key.partition(".")[0]
    tensors[f"{stem}.alpha"] = rng.choice([
        np.array(np.nan, np.float32), np.array(3e38, np.float32), np.array(-3e38, np.float32),
        np.zeros((0,), np.float32),
        np.array([1.0, 2.0], np.float32), np.array(1e300), np.array(2**62, np.int64),
    ])  # fmt: skip


def _half(tensors: dict[str, np.ndarray], key: str, _: random.Random) -> None:
    del tensors[key]


def _wrong_size(tensors: dict[str, np.ndarray], key: str, rng: random.Random) -> None:
    rows, columns = tensors[key].shape
    shape = rng.choice(
        [(rows + 1, columns), (rows, columns + 1), (columns, rows + 3), (rows, columns, 3, 3), (rows,), ()]
    )
    tensors[key] = np.ones(shape, np.float32)


def _high_rank(tensors: dict[str, np.ndarray], key: str, rng: random.Random) -> None:
    stem, rank = key.partition(".")[0], rng.choice([9, 64, 5000])
    name = next(name for name in TINY if stem.endswith(name.replace(".", "_")))
    tensors |= pair(name, rank)


def _foreign(tensors: dict[str, np.ndarray], key: str, rng: random.Random) -> None:
    stem = key.partition(".")[0]
    ending = rng.choice([
        "dora_scale", "hada_w1_a", "lokr_w1", "lora_mid.weight", "diff", "lora_up.bias", "oft_blocks",
        "lora_magnitude_vector", "lora_A.weight", "lora.down.weight",
    ])  # fmt: skip
    tensors[f"{stem}.{ending}"] = np.ones((2, 8), np.float32)


def _cut(rng: random.Random) -> bytes:
    raw = raw_file(*encoded(whole()))
    return raw[: rng.randrange(len(raw))]


def _longer(rng: random.Random) -> bytes:
    return raw_file(*encoded(whole())) + rng.randbytes(rng.choice([1, 4, 4096]))


def _length(rng: random.Random) -> bytes:
    raw = raw_file(*encoded(whole()))
    return rng.choice([0, 1, 2**63, 2**64 - 1, len(raw), 1 << 24, 1 << 40]).to_bytes(8, "little") + raw[8:]


def _not_json(rng: random.Random) -> bytes:
    return raw_file(
        rng.choice([b"{", b"[]", b"null", b"3", b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 5000, b"9" * 6000,
                    b'{"a": NaN}', b"{}"]),
        b"\0" * 64,
    )  # fmt: skip


def _twice(rng: random.Random) -> bytes:
    """A header that has one name for two tensors."""
    header, data = encoded(whole())
    text = json.dumps(header)
    key = rng.choice(list(header))
    return raw_file((text[:-1] + f", {json.dumps(key)}: {json.dumps(header[key])}}}").encode(), data)


def _pickled(rng: random.Random) -> bytes:
    return pickle.dumps(_Bomb(), protocol=rng.choice([0, 2, 4, 5]))


class _Bomb:
    """Whoever unpickles it raises what no test expects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def _zipped(rng: random.Random) -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(rng))
    return stream.getvalue()


MUTANTS: dict[str, Callable[[random.Random], bytes]] = {
    "dtype": _with_header(_dtype), "shape": _with_header(_shape), "offsets": _with_header(_offsets),
    "rename": _with_header(_rename), "field": _with_header(_extra_field), "metadata": _with_header(_metadata),
    "not finite": _with_tensors(_not_finite), "alpha": _with_tensors(_alpha), "half": _with_tensors(_half),
    "size": _with_tensors(_wrong_size), "rank": _with_tensors(_high_rank), "foreign": _with_tensors(_foreign),
    "cut": _cut, "longer": _longer, "length": _length, "not json": _not_json, "twice": _twice, "pickle": _pickled,
    "zip": _zipped,
}  # fmt: skip
