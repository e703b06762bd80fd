"""What makes which plans stale: a table of cases, with builds that need no TensorRT."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

import engine.plan
from engine.build import BuildEvent, build_engines
from engine.bundle import FILE, encode_bundle, load_bundle, sealed
from engine.errors import BuildFailed
from engine.plan import Options, engines_folder, info_path, read_info, seal
from engine.publish import publish_info, rejected_info_path
from tests.toy_bundle import write_bundle

GRAPHS = ("decoder", "denoiser", "start")
ALL = [f"128@2/{graph}" for graph in GRAPHS]
DENOISER = ["128@2/denoiser"]


def build(folder: Path, target: str = "tensorrt_rtx:8.6", profiles: tuple[str, ...] = ("128@2",), **options):
    """{plan: kind, reason} of what was kept, renewed or built."""
    events: list[BuildEvent] = []
    build_engines(folder, target, profiles, on_progress=events.append, **options)
    finished = [event for event in events if event.kind in ("kept", "renewed", "built")]
    assert [event.done for event in finished] == list(range(1, len(finished) + 1))
    return {event.plan: f"{event.kind}: {event.reason}" for event in finished}


def plan_of(folder: Path, graph: str, name: str = "128@2") -> Path:
    return next(engines_folder(folder).glob(f"*/{name}/{graph}.plan"))


@pytest.fixture
def folder(tmp_path, rtx, stub_builds) -> Path:
    """A bundle whose plans for 8.6 at 128@2 are built."""
    folder = write_bundle(tmp_path / "toy")
    build(folder)
    assert stub_builds.names() == ALL
    return folder


def edit_info(plan: Path, **fields) -> None:
    """Change plan.json as someone would who then computes its hash again."""
    info_path(plan).write_bytes(seal(msgspec.structs.replace(read_info(plan, ""), **fields)))


def damage(folder, monkeypatch, rtx):
    raw = plan_of(folder, "denoiser").read_bytes()
    plan_of(folder, "denoiser").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def cut(folder, monkeypatch, rtx):
    plan_of(folder, "denoiser").write_bytes(plan_of(folder, "denoiser").read_bytes()[:-1])


def forget(folder, monkeypatch, rtx):
    info_path(plan_of(folder, "denoiser")).unlink()


def lose(folder, monkeypatch, rtx):
    plan_of(folder, "denoiser").unlink()


def garble(folder, monkeypatch, rtx):
    info_path(plan_of(folder, "denoiser")).write_bytes(b"{}")


def edit(folder, monkeypatch, rtx):
    path = info_path(plan_of(folder, "denoiser"))
    path.write_bytes(path.read_bytes().replace(b'"warnings": 0', b'"warnings": 1'))


def upgrade(folder, monkeypatch, rtx):
    """The version is in the folder's name too: as if someone had renamed the folder."""
    rtx.__version__ = "1.8.0"
    old = plan_of(folder, "denoiser").parents[1]
    old.rename(old.with_name(old.name.replace("1.7.1.116", "1.8.0")))


def improve(folder, monkeypatch, rtx):
    """What an engine/ of a higher recipe computes as identities."""
    higher = engine.plan.RECIPE + 1
    made = engine.plan.identity_of

    def identity_of(*arguments, **named):
        return msgspec.structs.replace(made(*arguments, **named), recipe=higher)

    monkeypatch.setattr("engine.wanted.identity_of", identity_of)


def rename(folder, monkeypatch, rtx):
    bundle = load_bundle(folder)
    (folder / FILE).write_bytes(encode_bundle(sealed(msgspec.structs.replace(bundle, name="other"))))


def other_capability(folder, monkeypatch, rtx):
    plan = plan_of(folder, "denoiser")
    info = read_info(plan, "")
    edit_info(plan, identity=msgspec.structs.replace(info.identity, capabilities=("8.9",)))


def swap(folder, monkeypatch, rtx):
    """A plan.json and its plan under another graph's name."""
    for suffix in ("", ".json"):
        shutil.copy(f"{plan_of(folder, 'start')}{suffix}", f"{plan_of(folder, 'denoiser')}{suffix}")


CASES = {
    "nothing": (None, [], "kept: valid", {}),
    "a weight of one graph": (lambda f, m, r: write_bundle(f, scale=2.0), DENOISER, "built: graph file it was", {}),
    "the tables": (lambda f, m, r: write_bundle(f, steps=50), [], "renewed: the bundle changed", {}),
    "the bundle's name": (rename, [], "renewed: the bundle changed, this graph did not", {}),
    "a damaged byte": (damage, DENOISER, "built: sha256 ", {}),
    "a byte less": (cut, DENOISER, "built: ", {}),
    "a lost plan.json": (forget, DENOISER, "built: no plan", {}),
    "a lost plan": (lose, DENOISER, "built: no readable plan beside its plan.json", {}),
    "a garbled plan.json": (garble, DENOISER, "built: Object missing required field", {}),
    "an edited plan.json": (edit, DENOISER, "built: a body that does not match its own sha256", {}),
    "another graph's plan": (swap, DENOISER, "built: graph it was built from: start, now denoiser", {}),
    "a compute capability": (other_capability, DENOISER, "built: compute capability it was built for: 8.9", {}),
    "a recipe": (improve, ALL, "built: recipe of zturbo it was built by", {}),
    "a version": (upgrade, ALL, "built: version of TensorRT it was built with: 1.7.1.116, now 1.8.0", {}),
    "another target": (None, ALL, "built: no plan", {"target": "tensorrt_rtx:8.6,8.9"}),
    "another profile": (None, [f"64@1/{graph}" for graph in GRAPHS], "built: no plan", {"profiles": ("64@1",)}),
    "another precision": (
        None, [f"128@2.bf16/{graph}" for graph in GRAPHS], "built: no plan",
        {"precision": "bf16"},
    ),
    "a level that RTX makes nothing of": (None, [], "kept: valid", {"options": Options(level=5)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exactly_what_changed_is_built(folder, stub_builds, monkeypatch, rtx, name):
    change, expected, reason, options = CASES[name]
    if change is not None:
        change(folder, monkeypatch, rtx)
    kinds = build(folder, **options)
    assert stub_builds.names() == expected
    assert kinds["denoiser"].startswith(reason)
    again = build(folder, **options)
    assert stub_builds.names() == []
    assert set(again.values()) == {"kept: valid"}


def test_options_make_plans_stale_where_they_matter(tmp_path, gpu, stub_builds, gate):
    from tests.engine.conftest import passed

    gate(passed)
    folder = write_bundle(tmp_path / "toy")
    build(folder, "tensorrt")
    assert stub_builds.names() == ALL
    kinds = build(folder, "tensorrt", options=Options(level=5))
    assert stub_builds.names() == ALL
    assert set(kinds.values()) == {"built: options: TensorRT's defaults, now level 5"}
    assert set(build(folder, "tensorrt", options=Options(level=5)).values()) == {"kept: valid"}
    kinds = build(folder, "tensorrt", options=Options(level=5, workspace_mib=64))
    assert set(kinds.values()) == {"built: options: level 5, now level 5, workspace 64 MiB"}
    assert {read_info(plan_of(folder, "start"), "").options.workspace_mib} == {64}


def test_a_profile_with_other_shapes_is_another_plan(folder, stub_builds):
    """plan.json of a plan for one profile, moved into another's folder."""
    plan = plan_of(folder, "decoder")
    other = plan.parent.with_name("256@2")
    shutil.copytree(plan.parent, other)
    assert build(folder, profiles=("256@2",))["decoder"] == "built: profiles: 128@2, now 256@2"
    assert len(stub_builds.names()) == 3


def test_a_renewed_plan_is_the_same_file(folder, stub_builds):
    plan = plan_of(folder, "denoiser")
    before = plan.stat()
    write_bundle(folder, steps=50)
    build(folder)
    assert (plan.stat().st_ino, plan.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read_info(plan, "").identity.bundle_sha256 == load_bundle(folder).sha256


def test_a_build_says_that_the_plan_before_was_rejected(folder):
    plan = plan_of(folder, "denoiser")
    rejected_info_path(plan).write_bytes(info_path(plan).read_bytes())
    info_path(plan).unlink()
    assert build(folder)["denoiser"] == "built: no plan, one was rejected before"


def test_what_a_killed_build_left_is_swept(folder):
    left = plan_of(folder, "start").with_name("start.plan.999.tmp")
    timing = left.parents[1] / "timing-x.cache.999.tmp"
    for path in (left, timing):
        path.write_bytes(b"half")
    forget(folder, None, None)
    build(folder)
    assert not left.exists()
    assert not timing.exists()


def test_a_second_build_of_a_target_does_not_start(folder):
    import filelock

    with filelock.FileLock(plan_of(folder, "start").parents[1] / ".lock"), pytest.raises(BuildFailed, match="another"):
        build(folder)


def test_publish_info_of_a_plan_that_stays(folder):
    plan = plan_of(folder, "start")
    info = msgspec.structs.replace(read_info(plan, ""), warnings=7)
    publish_info(plan, info)
    assert read_info(plan, "").warnings == 7
