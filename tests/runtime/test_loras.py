"""LoRA files as lines of the wire: what the lines are, that none is made twice, and that damaged files end in an error.

Torch-free; tests/test_loras.py compares pictures with diffusers.
"""

from __future__ import annotations

import random
import time
import tracemalloc

import numpy as np
import pytest

from engine.errors import InvalidInput, LoraInvalid, RequestInvalid
from runtime.loras import MAX_BATCHES, Loras, chosen_loras
from runtime.request import Request
from tests.written_loras import MUTANTS, TINY, layers, mutant, pair, whole, write

RANK = 8
SEEDS = range(10)


@pytest.fixture
def loras():
    return Loras(layers(TINY, RANK), "float32")


def products(array, inputs):
    """B·A of each layer, of one row's lines in float64."""
    lines = array.astype(np.float64)
    return {
        one.name: lines[:, one.up : one.up + one.outputs].T @ lines[:, one.down : one.down + one.inputs]
        for one in inputs.layers
    }


def expected(tensors, weight, alpha):
    """The same from the file's tensors."""
    found = {}
    for name in TINY:
        stem = f"lora_unet_{name.replace('.', '_')}"
        down, up = (tensors[f"{stem}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
        found[name] = up @ down * (weight * alpha / len(down))
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_lines_hold_the_product(tmp_path, dtype, tolerance):
    """fp16 has 11 bits, and two factors are rounded: 1e-3 of the largest product."""
    inputs, tensors = layers(TINY, RANK), whole(rank=3, alpha=2.0)
    loras = Loras(inputs, dtype)
    packed = loras.check(((str(write(tmp_path / "x.safetensors", tensors)), 0.5),), "b")
    array = loras.rows([packed, ()])
    assert array.shape == (2, RANK, inputs.size)
    assert array.dtype == dtype
    assert not array[1].any()
    assert not array[0, 3:].any()
    found, wanted = products(array[0], inputs), expected(tensors, 0.5, 2.0)
    for name in TINY:
        assert np.abs(found[name] - wanted[name]).max() <= tolerance * np.abs(wanted[name]).max()


def test_small_values_keep_their_digits_in_fp16(tmp_path):
    """A of 1 and B of 1e-6, where fp16 alone has steps of 6e-8: a power of two is moved from one to the other."""
    inputs, tensors = layers(TINY, RANK), whole(rank=2, alpha=None)
    for key in tensors:
        if "lora_up" in key:
            tensors[key] = tensors[key] * np.float32(1e-6)
    loras = Loras(inputs, "float16")
    array = loras.rows([loras.check(((str(write(tmp_path / "x.safetensors", tensors)), 1.0),), "b")])
    found, wanted = products(array[0], inputs), expected(tensors, 1.0, 2.0)
    assert all(np.abs(found[name] - wanted[name]).max() <= 2e-3 * np.abs(wanted[name]).max() for name in TINY)


def test_several_add_up(loras, tmp_path):
    inputs = layers(TINY, RANK)
    files = [whole(rank=rank, alpha=1.0, seed=rank) for rank in (2, 5)]
    paths = [str(write(tmp_path / f"{k}.safetensors", tensors)) for k, tensors in enumerate(files)]
    array = loras.rows([loras.check(((paths[0], 1.0), (paths[1], -0.5)), "b")])
    found = products(array[0], inputs)
    first, second = expected(files[0], 1.0, 1.0), expected(files[1], -0.5, 1.0)
    for name in TINY:
        np.testing.assert_allclose(found[name], first[name] + second[name], rtol=1e-4, atol=1e-5)


def test_ranks_that_exceed_the_bundles(loras, tmp_path):
    path = str(write(tmp_path / "x.safetensors", whole(rank=5)))
    with pytest.raises(RequestInvalid, match=r"5 \+ 5.*--lora-rank 10"):
        loras.check(((path, 1.0), (path, 1.0)), "b")
    with pytest.raises(LoraInvalid, match="--lora-rank 9"):
        loras.check(((str(write(tmp_path / "y.safetensors", whole(rank=9))), 1.0),), "b")


def test_a_bundle_that_takes_none(tmp_path):
    loras = Loras(None, "float32")
    assert loras.rows([(), ()]) is None
    assert loras.check((), "b") == ()
    with pytest.raises(RequestInvalid, match="--lora-rank 16"):
        loras.check((("x.safetensors", 1.0),), "b")


def test_equal_rows_are_the_same_array_again(loras, tmp_path):
    """Read-only, so that whoever wrote it need not write it again; at most MAX_BATCHES of them stay."""
    path = str(write(tmp_path / "x.safetensors", whole()))
    packed = loras.check(((path, 1.0),), "b")
    assert loras.check(((path, 1.0),), "b")[0] is packed[0]
    array = loras.rows([packed, ()])
    assert loras.rows([packed, ()]) is array
    assert not array.flags.writeable
    for count in range(1, MAX_BATCHES + 2):
        loras.rows([()] * count)
    assert loras.rows([packed, ()]) is not array


def test_a_file_that_changed_is_read_again(loras, tmp_path):
    path = write(tmp_path / "x.safetensors", whole(rank=2))
    first = loras.check(((str(path), 1.0),), "b")[0]
    write(path, whole(rank=3))
    second = loras.check(((str(path), 1.0),), "b")[0]
    assert (len(first.lines), len(second.lines)) == (2, 3)
    assert first.sha256 != second.sha256


def test_text_encoders_alone(loras, tmp_path):
    tensors = {key.replace("lora_unet_", "lora_te_"): value for key, value in whole().items()}
    with pytest.raises(LoraInvalid, match="text encoders alone"):
        loras.check(((str(write(tmp_path / "x.safetensors", tensors)), 1.0),), "b")


def test_values_that_fp16_does_not_hold(tmp_path):
    loras = Loras(layers(TINY, RANK), "float16")
    tensors = whole(alpha=None)
    tensors = {key: value * np.float32(1e5) for key, value in tensors.items()}
    with pytest.raises(LoraInvalid, match="float16 does not hold"):
        loras.check(((str(write(tmp_path / "x.safetensors", tensors)), 1.0),), "b")


@pytest.mark.parametrize("kind", MUTANTS)
def test_damaged_files_end_in_one_error(loras, tmp_path, kind):
    """10 of each of 19 kinds, 190 in all. A few change nothing that counts, and are read; none may take more memory
    than a few times itself, nor run what it holds.
    """
    refused = 0
    for seed in SEEDS:
        path = tmp_path / f"{seed}.safetensors"
        path.write_bytes(mutant(kind, random.Random(seed)))
        tracemalloc.start()
        try:
            loras.check(((str(path), 1.0),), "b")
            told = ""
        except InvalidInput as error:
            told = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 8 << 20
        assert not told or (path.name in told and len(told) < 1000)
        refused += bool(told)
    assert refused >= len(SEEDS) - 3


@pytest.mark.parametrize("value", ["x", 3, None, [3], [("x",)], [("x", 1, 2)], [("", 1)], [("x", "1")], [("x", np.nan)],
                                   [("x", 1.0)] * 17, {"x": 1}])  # fmt: skip
def test_what_a_request_does_not_take(value):
    with pytest.raises(RequestInvalid, match="loras"):
        Request(prompt="x", loras=value)


def test_what_a_request_takes(tmp_path):
    request = Request(prompt="x", loras=[("a", 0.5), tmp_path / "b", ("c", np.float32(2))])
    assert request.loras == (("a", 0.5), (str(tmp_path / "b"), 1.0), ("c", 2.0))
    assert chosen_loras(request.loras) == request.loras


def sd15():
    """Sizes of the layers of SD 1.5's transformer blocks: 16 of them at 320, 640 and 1280 channels."""
    sizes = {}
    for block, width in enumerate([320] * 5 + [640] * 5 + [1280] * 6):
        for attention, context in (("attn1", width), ("attn2", 768)):
            for part, inputs in (("q", width), ("k", context), ("v", context), ("out", width)):
                sizes[f"b{block}.{attention}.to_{part}"] = (inputs, width)
        sizes |= {f"b{block}.ff.net.0": (width, 8 * width), f"b{block}.ff.net.2": (4 * width, width),
                  f"b{block}.proj_in": (width, width), f"b{block}.proj_out": (width, width)}  # fmt: skip
    return sizes


def test_a_real_models_lora_is_packed_in_less_than_a_second(tmp_path):
    """Of processor time. Rank 16 of SD 1.5 at its size, from file to the array of a guided sample: about 0.2 s."""
    sizes = sd15()
    tensors = {}
    for k, name in enumerate(sizes):
        tensors |= {key: value.astype(np.float16) for key, value in pair(name, 16, k, sizes).items()}
    path = str(write(tmp_path / "x.safetensors", tensors))
    loras = Loras(layers(sizes, 16), "float16")
    begun = time.process_time()
    packed = loras.check(((path, 0.8),), "b")
    array = loras.rows([packed, packed])
    assert time.process_time() - begun < 1
    assert array.nbytes > 25e6
    begun = time.process_time()
    assert loras.rows([loras.check(((path, 0.8),), "b")] * 2) is array
    assert time.process_time() - begun < 0.1
