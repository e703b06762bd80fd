"""The files that bundle.json names: missing, damaged, or not in the bundle at all."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from engine.bundle import load_bundle, verified_path
from engine.digest import file_sha256
from engine.errors import BundleDamaged
from tests.fake_bundle import edit

FILES = ("tokenizer.json", "tables.npz", "reference.npz", "graphs/fp32/denoiser.onnx")


class TestFiles:
    @pytest.mark.parametrize("name", FILES)
    def test_missing(self, refused, own_bundle, name):
        (own_bundle / name).unlink()
        error = refused(own_bundle, BundleDamaged)
        assert (error.subject, error.actual) == (str(own_bundle / name), "no such file in the bundle")

    @pytest.mark.parametrize("name", FILES)
    def test_truncated_or_longer(self, refused, own_bundle, name):
        whole = (own_bundle / name).read_bytes()
        for size, content in ((0, b""), (len(whole) - 1, whole[:-1]), (len(whole) + 1, whole + b"\n")):
            (own_bundle / name).write_bytes(content)
            error = refused(own_bundle, BundleDamaged)
            assert (error.actual, error.allowed) == (f"{size} bytes", f"{len(whole)} bytes")

    @pytest.mark.parametrize("name", FILES)
    def test_one_bit_flipped(self, own_bundle, name):
        whole = bytearray((own_bundle / name).read_bytes())
        whole[len(whole) // 2] ^= 4
        (own_bundle / name).write_bytes(whole)
        bundle = load_bundle(own_bundle)
        with pytest.raises(BundleDamaged, match=r"got sha256 .*; allowed: ") as caught:
            verified_path(own_bundle, bundle, name)
        assert caught.value.subject == str(own_bundle / name)

    def test_a_folder_in_its_place(self, refused, own_bundle):
        (own_bundle / "tables.npz").unlink()
        (own_bundle / "tables.npz").mkdir()
        refused(own_bundle, BundleDamaged)

    def test_removed_after_the_bundle_was_read(self, own_bundle):
        bundle = load_bundle(own_bundle)
        (own_bundle / "tables.npz").unlink()
        with pytest.raises(BundleDamaged, match=r"tables\.npz: got unreadable \(No such file or directory\)"):
            verified_path(own_bundle, bundle, "tables.npz")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, own_bundle):
        (own_bundle / "tables.npz").chmod(0)
        with pytest.raises(BundleDamaged, match="Permission denied"):
            verified_path(own_bundle, load_bundle(own_bundle), "tables.npz")


def moved(own_bundle, name):
    """The tokenizer goes by another name in bundle.json, its size and hash included."""

    def change(body):
        body["files"][name] = body["files"].pop("tokenizer.json")
        body["tokenizer"]["file"] = name

    edit(own_bundle, change)


class TestPathsThatLeave:
    @pytest.mark.parametrize("name", ["../outside.json", "graphs/../../outside.json", "./../fake/../outside.json"])
    def test_upwards(self, refused, own_bundle, name):
        shutil.copy(own_bundle / "tokenizer.json", own_bundle.parent / "outside.json")
        moved(own_bundle, name)
        assert refused(own_bundle, BundleDamaged).actual == "no such file in the bundle"

    def test_absolute(self, refused, own_bundle):
        outside = shutil.copy(own_bundle / "tokenizer.json", own_bundle.parent / "outside.json")
        moved(own_bundle, str(outside))
        refused(own_bundle, BundleDamaged)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_by_a_link(self, refused, own_bundle):
        (own_bundle / "tokenizer.json").rename(own_bundle.parent / "outside.json")
        (own_bundle / "tokenizer.json").symlink_to("../outside.json")
        refused(own_bundle, BundleDamaged)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_by_a_linked_folder(self, refused, own_bundle):
        (own_bundle.parent / "elsewhere").mkdir()
        shutil.copy(own_bundle / "tokenizer.json", own_bundle.parent / "elsewhere" / "tokenizer.json")
        (own_bundle / "inner").symlink_to("../elsewhere")
        moved(own_bundle, "inner/tokenizer.json")
        refused(own_bundle, BundleDamaged)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_a_circle_of_links(self, refused, own_bundle):
        (own_bundle / "tokenizer.json").unlink()
        (own_bundle / "tokenizer.json").symlink_to("tokenizer.json")
        refused(own_bundle, BundleDamaged)

    @pytest.mark.parametrize("name", ["", ".", "graphs", "graphs/", "x" * 300, "a\0b", "tokenizer.json/x"])
    def test_what_is_no_file(self, refused, own_bundle, name):
        moved(own_bundle, name)
        refused(own_bundle, BundleDamaged)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_a_link_within_the_bundle_or_to_all_of_it_is_fine(self, own_bundle):
        (own_bundle / "tokenizer.json").rename(own_bundle / "graphs" / "tokenizer.json")
        (own_bundle / "tokenizer.json").symlink_to("graphs/tokenizer.json")
        (own_bundle.parent / "link").symlink_to("fake")
        bundle = load_bundle(own_bundle.parent / "link")
        assert verified_path(own_bundle.parent / "link", bundle, "tokenizer.json").is_file()


@pytest.mark.parametrize("size", [0, 3, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_hashes_of_files(tmp_path, size):
    (tmp_path / "x").write_bytes(b"ab" * size)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"ab" * size).hexdigest()
