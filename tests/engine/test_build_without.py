"""Builds that leave out graphs which not every picture needs: real TensorRT-RTX plans of the self-test's bundle."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorrt_rtx")

from engine.audit import audit
from engine.build import build_engines
from engine.errors import OptionInvalid
from zturbo.selftest_bundle import write_bundle

TARGET, PROFILE = "tensorrt_rtx:8.9", ["64@2"]


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path)
    return tmp_path


def test_no_plan_is_built_or_missed_of_a_graph_that_is_left_out(folder):
    infos = build_engines(folder, TARGET, PROFILE, jobs=2, without=["encoder", "preview"])
    assert {info.identity.graph for info in infos}.isdisjoint({"encoder", "preview"})
    left = {"encoder.plan", "preview.plan"}
    assert {path.name for path in folder.rglob("*.plan")}.isdisjoint(left)
    missing = {one.plan for one in audit(folder, TARGET, PROFILE) if one.state == "missing"}
    assert missing == {"encoder", "preview"}
    rest = audit(folder, TARGET, PROFILE, without=["encoder", "preview"])
    assert rest
    assert not [one for one in rest if one.state == "missing"]


@pytest.mark.parametrize("name", ["denoiser", "nothing"])
def test_what_every_picture_needs_is_not_left_out(folder, name):
    with pytest.raises(OptionInvalid, match=f"without: got {name}; allowed: encoder, preview"):
        build_engines(folder, TARGET, PROFILE, without=[name])
