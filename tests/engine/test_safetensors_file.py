"""Tensors come back as they were written, of each type; what is no such file is refused before it is believed."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from engine.errors import LoraInvalid
from engine.safetensors_file import SafetensorsFile
from tests.written_loras import encoded, raw_file, write


def test_tensors_come_back(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5))
    tensors = {
        "a": values.astype(np.float32), "b": values.astype(np.float16), "c": values, "d": np.array(7, np.int64),
        "e": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    path = write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, expected in tensors.items():
        found = file.array(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 3e38, 1e-40, 0.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    found = SafetensorsFile(write(tmp_path / "x.safetensors", {"a": bits})).array("a")
    assert np.array_equal(found.view(np.uint32) >> 16, values.view(np.uint32) >> 16)
    assert np.allclose(found, values, rtol=2**-7)


def test_what_torch_saves_comes_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {str(kind): torch.randn(3, 4).to(kind) for kind in (torch.float32, torch.float16, torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert all(np.array_equal(file.array(name), tensor.float().numpy()) for name, tensor in tensors.items())


@pytest.mark.parametrize("what", ["missing", "folder", "device", "name"])
def test_what_is_no_file(tmp_path, what):
    path = {"missing": tmp_path / "no", "folder": tmp_path, "device": tmp_path / "pipe", "name": tmp_path / "a\0b"}[
        what
    ]
    if what == "device":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no named pipes here")
        os.mkfifo(path)
    with pytest.raises(LoraInvalid) as caught:
        SafetensorsFile(path)
    assert caught.value.actual == "no such file"


@pytest.mark.parametrize("what", ["hole", "overlap", "type", "twice", "zip", "empty"])
def test_a_refusal_is_of_the_file_and_says_what_mends_it(tmp_path, what):
    """All that is refused is in test_safetensors_header.py."""
    header, data = encoded({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)})
    text = json.dumps(header)
    made = {
        "hole": (text.replace("16, 32", "20, 36").encode(), data + b"\0" * 4),
        "overlap": (text.replace("16, 32", "0, 16").encode(), data[:16]),
        "type": (text.replace('"F32"', '"U32"').encode(), data),
        "twice": (text.replace('"b"', '"a"').encode(), data),
        "zip": (b"", b""), "empty": (b"{}", b""),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(60) if what == "zip" else raw_file(*made[what]))
    words = {"hole": "a gap", "overlap": "an overlap", "type": "'U32'.*F64, F32", "twice": "'a' twice", "zip": "a zip",
             "empty": "no tensor"}  # fmt: skip
    with pytest.raises(LoraInvalid, match=words[what]) as caught:
        SafetensorsFile(path)
    assert caught.value.subject == str(path)
    assert "Pass a LoRA" in caught.value.remedy


def test_a_header_of_640_bytes_is_no_pickle(tmp_path):
    """Whose two first bytes it has."""
    header, data = encoded({"a": np.arange(4, dtype=np.float32)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file(json.dumps(header).encode().ljust(640), data))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert SafetensorsFile(path).array("a").tolist() == [0, 1, 2, 3]
