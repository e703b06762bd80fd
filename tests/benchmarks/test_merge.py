"""Results of one lease put together: ratios, and what was asked beside what was found."""

from __future__ import annotations

import json

import pytest

from benchmarks import merge
from engine.errors import OptionInvalid

WORK = {"bundle": "sd15", "width": 512, "height": 512, "precision": "fp16", "machine": {"gpu": "H100"}}
LOOP = {
    "benchmark": "loop", **WORK, "captures": 2,
    "graphs_ms": {"denoiser": {"median": 8.0}, "solver": {"median": 0.25}, "prologue": {"median": 0.5}},
    "captured": {
        "20": {"ratio": 1.03, "wall_ms_per_step": {"median": 8.5}},
        "100": {"ratio": 1.01, "wall_ms_per_step": {"median": 8.25}},
    },
}  # fmt: skip
TORCH = {
    "benchmark": "torch", **WORK, "steps": 20,
    "modes": {"eager": {"forward_ms": {"median": 24.0}, "loop_ms_per_step": {"median": 25.5}}},
}  # fmt: skip
PEAK = {"benchmark": "memory-peak", "size": 512, "precision": "fp16", "steps": 20, "machine": {"gpu": "H100"}}
PEAKS = [{**PEAK, "backend": "tensorrt", "peak_mib": 3000.0}, {**PEAK, "backend": "diffusers", "peak_mib": 6000.0}]
BUILD = {"folder": "/somewhere/engines", "plans": [], "seconds": 470.0}
OTHERS = [
    *PEAKS,
    {"benchmark": "memory-cycles", "spread_mib": 40.0},
    {"benchmark": "gpu-compare", "median_psnr_db": 59.0},
    BUILD,
]


def test_everything_that_follows():
    found = merge.merge([LOOP, TORCH, *OTHERS], ratio=1.02, build_seconds=480)
    assert found["speed"]["torch_over_ours"] == {"eager": {"forward": 3.0, "loop": 3.0}}
    assert found["speed"]["once_ms"] == {"prologue": 0.5}
    assert found["peak_mib"] == {"tensorrt": 3000.0, "diffusers": 6000.0, "tensorrt_over": {"diffusers": 0.5}}
    assert [(row["found"], row["met"]) for row in found["asked"]] == [
        (2, True), (1.03, False), (8.5 / 8.25, False), (1.01, True), (1.0, True), (470.0, True), (40.0, False),
        (59.0, True),
    ]  # fmt: skip
    assert found["build"] == {"plans": [], "seconds": 470.0}, "no path of a machine"


def test_a_step_that_was_measured_whole_is_what_the_wall_time_is_divided_by():
    whole = {**LOOP, "step_alone_ms": {"median": 4.25}}
    rows = merge.merge([whole], ratio=1.05)["asked"]
    assert [row["found"] for row in rows if "alone" in row["what"]] == [2.0, pytest.approx(8.25 / 4.25)]
    assert not any(row["met"] for row in rows if "alone" in row["what"]), "though wall over replays is 1.03"


@pytest.mark.parametrize(("ratio", "code"), [("1.05", 0), ("1.02", 1)])
def test_the_exit_code_says_whether_all_is_met(tmp_path, capsys, ratio, code):
    (tmp_path / "loop.json").write_text(json.dumps(LOOP))
    words = [str(tmp_path / "out.json"), str(tmp_path / "loop.json"), "--ratio", ratio]
    assert merge.main([*words, "--without", "cycles", "psnr"]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "gpu"
    assert json.loads((tmp_path / "out.json").read_text())["loop"] == LOOP


def test_what_was_asked_and_not_measured_is_not_met(tmp_path, capsys):
    found = merge.merge([], ratio=1.05, build_seconds=480)
    assert {name: found[name] for name in ("benchmark", "speed", "peak_mib")} == {
        "benchmark": "gpu", "speed": {}, "peak_mib": {},
    }  # fmt: skip
    assert [row["what"].split(",")[0] for row in found["asked"]] == [
        "captures of the loop's step", "wall over replays", "wall of a step over its time alone",
        "seconds of the build", "spread of free memory over cycles", "median PSNR",
    ]  # fmt: skip
    assert all(row["found"] is None and not row["met"] for row in found["asked"])
    (tmp_path / "torch.json").write_text(json.dumps(TORCH))
    assert merge.main([str(tmp_path / "out.json"), str(tmp_path / "torch.json"), "--ratio", "1.05"]) == 1
    assert "not measured" in capsys.readouterr().out


def test_a_loop_that_was_never_captured_is_not_met():
    rows = merge.merge([{**LOOP, "captures": 0}], ratio=1.05)["asked"]
    assert [row["met"] for row in rows if row["what"] == "captures of the loop's step"] == [False]


OTHER_WORK = [
    {"bundle": "emoji"}, {"width": 256}, {"height": 256}, {"precision": "fp32"}, {"machine": {"gpu": "H200"}},
    {"steps": 50},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHER_WORK, ids=lambda other: next(iter(other)))
def test_times_of_different_work_are_not_divided(other):
    with pytest.raises(OptionInvalid, match=r"loop and torch"):
        merge.merge([LOOP, {**TORCH, **other}], ratio=1.05)


@pytest.mark.parametrize("other", [{"size": 256}, {"precision": "fp32"}, {"machine": {"gpu": "H200"}}])
def test_peaks_of_different_work_are_not_divided(other):
    with pytest.raises(OptionInvalid, match=r"memory peaks"):
        merge.merge([PEAKS[0], {**PEAKS[1], **other}], ratio=1.05)


@pytest.mark.parametrize("one", [LOOP, TORCH, *OTHERS], ids=lambda one: one.get("benchmark", "build"))
def test_two_results_of_one_kind_are_refused(one):
    with pytest.raises(OptionInvalid, match=r"2 results of one kind"):
        merge.merge([one, one], ratio=1.05)


def test_a_refusal_is_a_message(tmp_path, capsys):
    (tmp_path / "loop.json").write_text(json.dumps(LOOP))
    words = [str(tmp_path / "out.json"), *[str(tmp_path / "loop.json")] * 2, "--ratio", "1.05"]
    assert merge.main(words) == 2
    assert "OptionInvalid" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
