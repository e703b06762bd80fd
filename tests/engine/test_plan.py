"""plan.json: everything that must agree before a plan's bytes are used, one error each."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shlex
from pathlib import Path

import msgspec
import pytest

from engine.bundle import load_bundle
from engine.errors import OutputError, PlanDamaged, PlanError, PlanInvalid, PlanMismatch, PlanMissing
from engine.machine import Machine
from engine.plan import (
    VERSION,
    Facts,
    Identity,
    Options,
    PlanInfo,
    Wires,
    build_command,
    build_remedy,
    check_identity,
    found_counts,
    graph_sha256,
    identity_of,
    info_path,
    plan_path,
    read_info,
    seal,
    soft_differences,
    verified_plan,
)
from engine.profiles import parse_profile
from engine.publish import publish, sweep
from engine.schema import FileEntry
from engine.verdict import NOT_YET, Verdict
from tests.toy_bundle import GRAPHS, write_bundle

RAW = b"a plan" * 100
REMEDY = "Run `zturbo build`."
H200 = Machine(gpu="NVIDIA H200", compute_capability="9.0", driver="580.1", cuda="13.0")


@pytest.fixture
def expected(tmp_path: Path) -> Identity:
    bundle = load_bundle(write_bundle(tmp_path / "toy"))
    profile = parse_profile("128@2", bundle)
    return identity_of(bundle, GRAPHS[1], "fp16", [profile], "tensorrt", "8.6.0", ("9.0",))


@pytest.fixture
def plan(tmp_path: Path, expected: Identity) -> Path:
    path = tmp_path / "engines" / "denoiser.plan"
    publish(path, RAW, info_of(expected))
    return path


def info_of(identity: Identity) -> PlanInfo:
    entry = FileEntry(size_bytes=len(RAW), sha256=hashlib.sha256(RAW).hexdigest())
    return PlanInfo(
        version_of_schema=VERSION, sha256="", identity=identity, plan=entry, options=Options(), mode="fp16",
        wires=Wires(inputs=("latents",), outputs=("next_latents",)),
        machine=H200, warnings=0, seconds=1.5,
        facts=Facts(layers=3), verdict=NOT_YET,
    )  # fmt: skip


def load(plan: Path, expected: Identity) -> bytes:
    info = read_info(plan, REMEDY)
    check_identity(plan, info.identity, expected, REMEDY)
    return verified_plan(plan, info, REMEDY)


def test_what_was_published_loads(plan, expected):
    assert load(plan, expected) == RAW
    assert sorted(path.name for path in plan.parent.iterdir()) == ["denoiser.plan", "denoiser.plan.json"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bundle_sha256", "0" * 64, "bundle it was built for"),
        ("graph_sha256", "0" * 64, "graph file it was built from"),
        ("graph", "decoder", "graph it was built from"),
        ("part", (2, 3), r"part of the graph: got 2 of 3; allowed: 1 of 1"),
        ("precision", "bf16", "precision"),
        ("profiles", ("128@2", "256@2"), "profiles: got 128@2, 256@2; allowed: 128@2"),
        ("shapes", (), "shapes of its profiles"),
        ("flavour", "tensorrt_rtx", "kind of TensorRT"),
        ("version", "10.4.0", "version of TensorRT"),
        ("capabilities", ("8.6",), "compute capability"),
        ("recipe", 99, "recipe"),
    ],
)
def test_every_field_of_its_identity_is_hard(plan, expected, field, value, words):
    info = read_info(plan, REMEDY)
    other = msgspec.structs.replace(info, identity=msgspec.structs.replace(info.identity, **{field: value}))
    publish(plan, RAW, other)
    with pytest.raises(PlanMismatch, match=words) as caught:
        load(plan, expected)
    assert caught.value.remedy == REMEDY


def test_a_plan_for_more_gpus_runs_on_one_of_them(plan, expected):
    wide = msgspec.structs.replace(expected, capabilities=("8.6", "9.0"))
    publish(plan, RAW, info_of(wide))
    assert load(plan, expected) == RAW


@pytest.mark.parametrize("raw", [RAW[:-1], RAW + b"!", b"A" + RAW[1:], b""])
def test_damaged_bytes(plan, expected, raw):
    plan.write_bytes(raw)
    with pytest.raises(PlanDamaged):
        load(plan, expected)


def test_missing_files(plan, expected):
    info_path(plan).rename(plan.parent / "aside")
    with pytest.raises(PlanMissing):
        load(plan, expected)
    (plan.parent / "aside").rename(info_path(plan))
    plan.unlink()
    with pytest.raises(PlanMissing, match="beside its plan"):
        load(plan, expected)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"version_of_schema": 1}'])
def test_a_plan_json_that_is_none(plan, expected, raw):
    info_path(plan).write_bytes(raw)
    with pytest.raises(PlanInvalid):
        load(plan, expected)


def test_another_version_of_the_schema_says_so(plan, expected):
    body = json.loads(info_path(plan).read_bytes())
    info_path(plan).write_text(json.dumps({**body, "version_of_schema": 1, "new": 1}))
    with pytest.raises(PlanInvalid, match="version 1; allowed: version 2"):
        load(plan, expected)


def test_an_edit_by_hand_and_an_unknown_key(plan, expected):
    text = info_path(plan).read_text()
    info_path(plan).write_text(text.replace("8.6.0", "8.6.1"))
    with pytest.raises(PlanInvalid, match="edited by hand"):
        load(plan, expected)
    info_path(plan).write_text(text.replace('"warnings"', '"extra": 1, "warnings"'))
    with pytest.raises(PlanInvalid, match="extra"):
        load(plan, expected)


def test_random_damage_to_either_file_is_refused(plan, expected):
    pick = random.Random(0)
    for path in (plan, info_path(plan)):
        whole = path.read_bytes()
        for _ in range(100):
            at, bit = pick.randrange(len(whole)), 1 << pick.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                assert load(plan, expected) == RAW  # white space of plan.json may change
                assert path == info_path(plan)
            except PlanError:
                pass
        path.write_bytes(whole)


def test_external_data_belongs_to_the_graph(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / "toy"))
    data = {f"{GRAPHS[1].file}.data": FileEntry(size_bytes=1, sha256="1" * 64)}
    wider = msgspec.structs.replace(bundle, files={**bundle.files, **data})
    assert graph_sha256(bundle, GRAPHS[1]) == bundle.files[GRAPHS[1].file].sha256
    assert graph_sha256(wider, GRAPHS[1]) != graph_sha256(bundle, GRAPHS[1])
    assert graph_sha256(wider, GRAPHS[0]) == graph_sha256(bundle, GRAPHS[0])


def test_another_driver_is_no_error(plan):
    info = read_info(plan, REMEDY)
    assert soft_differences(info, H200) == []
    other = msgspec.structs.replace(H200, driver="581.2")
    assert soft_differences(info, other) == ["driver: built with 580.1, running with 581.2"]
    assert soft_differences(msgspec.structs.replace(info, machine=None), other) == []


def test_sealing_is_stable(expected):
    assert seal(info_of(expected)) == seal(msgspec.json.decode(seal(info_of(expected)), type=PlanInfo))


def test_what_killed_builds_left_is_swept(plan):
    (plan.parent / "denoiser.plan.123.tmp").write_bytes(b"half")
    sweep(plan.parent)
    assert sorted(path.name for path in plan.parent.iterdir()) == ["denoiser.plan", "denoiser.plan.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_plan_that_cannot_be_written_leaves_nothing_and_says_what_is_short(plan, expected, monkeypatch, failing):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*(("os.fsync", full) if failing == "fsync" else (Path, "replace", full)))
    with pytest.raises(OutputError, match=r"No space left.*Free space and build again"):
        publish(plan, b"another", info_of(expected))
    assert not list(plan.parent.glob("*.tmp"))


def test_a_part_is_named_in_its_file_and_in_words(tmp_path, expected):
    profiles = [parse_profile(text, load_bundle(tmp_path / "toy")) for text in ("dynamic:64-128@1-8", "128@2")]
    whole = plan_path(tmp_path, "rtx", profiles, "bf16", "denoiser")
    part = plan_path(tmp_path, "rtx", profiles, "bf16", "denoiser", (2, 7))
    folder = tmp_path / "engines" / "rtx" / "dynamic-64-128@1-8+128@2.bf16"
    assert (whole, part) == (folder / "denoiser.plan", folder / "denoiser.2of7.plan")
    assert expected.name == "denoiser"
    assert msgspec.structs.replace(expected, part=(2, 7)).name == "denoiser 2/7"


def test_the_numbers_of_parts_are_those_that_file_names_tell(tmp_path):
    for name in ("x.plan", "x.1of3", "x.3of3", "x.1of12", "x.1of0", "x.plan.rejected", "xy.1of5", "xy", "x.1of2000"):
        (tmp_path / f"{name}.plan.json").touch()
    (tmp_path / "x.1of9.plan").touch()
    assert found_counts(tmp_path, "x") == [3, 12]
    assert found_counts(tmp_path, "xy") == [1, 5]
    assert found_counts(tmp_path / "none", "x") == []


def test_the_remedy_is_the_command_that_builds_the_set(tmp_path):
    command = f"Run `zturbo build {tmp_path} --target tensorrt --profiles '128@2 256@2'"
    assert build_remedy(tmp_path, "tensorrt", "128@2 256@2", "bf16", shared=True) == (
        f"{command} --precision bf16 --shared`."
    )
    assert build_remedy(tmp_path, "tensorrt", "128@2 256@2") == f"{command}`."
    asked = Options(level=2, workspace_mib=64)
    assert build_remedy(tmp_path, "tensorrt", "128@2 256@2", options=asked, parts=7) == (
        f"{command} --parts 7 --level 2 --workspace 64`."
    )


@pytest.mark.parametrize("name", ["plain", "two words", "a'b", 'a"b', "$HOME", "a`b"])
def test_the_command_is_read_by_a_shell_as_it_was_meant(name):
    command = build_command(Path(name), "tensorrt_rtx:8.6,8.9", "128@2 256@2")
    assert shlex.split(command) == [
        "zturbo", "build", name, "--target", "tensorrt_rtx:8.6,8.9", "--profiles", "128@2 256@2",
    ]  # fmt: skip


def test_a_plan_json_that_cannot_be_read_is_not_told_as_missing(plan, expected):
    info_path(plan).unlink()
    info_path(plan).mkdir()
    with pytest.raises(PlanMissing, match=r"no plan\.json that can be read"):
        load(plan, expected)


def test_a_verdict_of_another_gpu_is_worth_a_warning(expected):
    verdict = Verdict(status="passed", machine=H200)
    info = msgspec.structs.replace(info_of(expected), machine=None, verdict=verdict)
    assert soft_differences(info, H200) == []
    other = msgspec.structs.replace(H200, gpu="NVIDIA L4", compute_capability="8.9")
    assert soft_differences(info, other) == ["parity gate: compared on compute capability 9.0, running on 8.9"]


def test_a_verdict_in_words_says_what_was_not_compared():
    assert Verdict(status="passed").text == "passed"
    assert Verdict(status="passed", ungated=("a", "b")).text == "passed (not compared: a; b)"
    assert Verdict(status="rejected", reason="too far", ungated=("a",)).text == "rejected: too far (not compared: a)"
