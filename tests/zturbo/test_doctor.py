"""`zturbo doctor`: the machine's facts, which backend `auto` takes, and why not the others."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from engine.errors import BackendUnavailable
from tests.zturbo.stand_ins import assert_refused
from zturbo import host


@pytest.fixture
def only_onnxruntime(monkeypatch):
    def open_one(name, folder, bundle, options):
        if name != "onnxruntime":
            raise BackendUnavailable(name, actual="nothing", allowed="a GPU", remedy="Buy one.")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("runtime.backends.open_one", open_one)


def test_names_what_auto_takes_and_why_not_the_others(zturbo, small_bundle, only_onnxruntime):
    answer = json.loads(zturbo("doctor", small_bundle, "--json").stdout)
    diagnosis = answer["bundles"][str(small_bundle)]
    assert diagnosis["takes"] == "onnxruntime"
    assert diagnosis["backends"]["onnxruntime"] is None
    assert diagnosis["backends"]["tensorrt"].startswith("BackendUnavailable: tensorrt: got nothing")
    assert answer["python"].startswith("3.")
    assert answer["cores"] >= 1


def test_finds_bundles_by_itself(zturbo, small_bundle, only_onnxruntime):
    done = zturbo("doctor")
    assert "taken by auto" in done.stdout
    assert "Buy one." in done.stdout


def test_without_any_bundle(zturbo):
    done = zturbo("doctor")
    assert done.exit_code == 0
    assert "zturbo export" in done.stdout


def test_a_found_bundle_that_is_damaged_is_told(zturbo, small_bundle):
    (small_bundle / "tables.npz").write_bytes(b"")
    done = zturbo("doctor")
    assert done.exit_code == 0
    assert "BundleDamaged" in done.stdout


def test_a_named_bundle_must_be_there(zturbo):
    assert_refused(zturbo("doctor", "nowhere"), "BundleMissing")


def test_gpus_come_from_nvidia_smi(monkeypatch):
    listing = "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.95.05\nA, B GPU, 9.0, [N/A], 580.95.05\n"
    answer = subprocess.CompletedProcess([], 0, stdout=listing, stderr="")
    monkeypatch.setattr(host.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(host.subprocess, "run", lambda *_, **__: answer)
    gpus, why_none = host.find_gpus()
    assert gpus[0] == host.Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564, "580.95.05")
    assert gpus[1].name == "A, B GPU"
    assert gpus[1].memory_mib is None
    assert why_none == ""


def test_a_driver_that_fails_is_a_reason_and_no_crash(monkeypatch):
    answer = subprocess.CompletedProcess([], 9, stdout="NVIDIA-SMI has failed\n", stderr="")
    monkeypatch.setattr(host.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(host.subprocess, "run", lambda *_, **__: answer)
    assert host.find_gpus() == ((), "nvidia-smi failed: NVIDIA-SMI has failed")
