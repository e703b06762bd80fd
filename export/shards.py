"""A component's weights as safetensors files of bounded size, written as they come: one file's worth is in memory.

The names are those of diffusers and transformers. Does not know where weights come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 1 << 30
"""Of a file, unless one tensor has more."""


def write_shards(folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write `<stem>.safetensors`, or where there is more than SHARD_BYTES numbered files and their index.

    tensors: by name; each may be on any device, and is let go once its file is written.
    """
    files: list[list[str]] = []
    total, pending = 0, dict[str, Tensor]()
    for name, tensor in tensors:
        if pending and size_bytes(pending) + tensor.nbytes > SHARD_BYTES:
            total += _flush(folder, files, pending)
        pending[name] = tensor.cpu()
        del tensor
    total += _flush(folder, files, pending)
    if len(files) == 1:
        _partial(folder, 0).replace(folder / f"{stem}.safetensors")
        return
    places = dict[str, str]()
    for index, names in enumerate(files):
        file = f"{stem}-{index + 1:05d}-of-{len(files):05d}.safetensors"
        _partial(folder, index).replace(folder / file)
        places |= dict.fromkeys(names, file)
    told = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def size_bytes(tensors: dict[str, Tensor]) -> int:
    """What they occupy."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _flush(folder: Path, files: list[list[str]], pending: dict[str, Tensor]) -> int:
    """Write what is pending to the next file; its bytes."""
    size = size_bytes(pending)
    save_file(pending, _partial(folder, len(files)), metadata={"format": "pt"})
    files.append(list(pending))
    pending.clear()
    return size


def _partial(folder: Path, index: int) -> Path:
    """A file's name while it is not known how many there will be."""
    return folder / f".{index}.partial"
