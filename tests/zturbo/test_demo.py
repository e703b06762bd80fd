"""`zturbo demo`: exports where it must, and leaves a sheet with every prompt."""

from __future__ import annotations

import json

from PIL import Image

from tests.fake_bundle import write_bundle
from tests.zturbo.stand_ins import assert_refused
from zturbo.commands import demo


def test_makes_a_sheet_and_a_table_of_times(zturbo, small_bundle, fake_pipeline, tmp_path):
    done = zturbo("demo", "--model", "models/small", "--steps", 3)
    assert done.exit_code == 0, done.stderr
    assert [request.prompt for request in fake_pipeline.requests] == list(demo.PROMPTS)
    assert "8 pictures, 3 steps each" in done.stdout
    assert "loop" in done.stdout
    assert len(list((tmp_path / "out" / "demo").iterdir())) == len(demo.PROMPTS) + 1
    with Image.open(tmp_path / "out" / "demo" / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_exports_where_there_is_no_bundle(zturbo, fake_pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "export_model", lambda model, folder: write_bundle(tmp_path / folder))
    answer = json.loads(zturbo("demo", "--model", "models/other", "--steps", 1, "--json").stdout)
    assert answer["seconds"]["loop"] == 4.0
    assert (tmp_path / "trt_models" / "other" / "bundle.json").is_file()


def test_a_damaged_bundle_is_exported_again(zturbo, small_bundle, fake_pipeline, monkeypatch):
    (small_bundle / "tables.npz").write_bytes(b"")
    monkeypatch.setattr(demo, "export_model", lambda model, folder: write_bundle(small_bundle))
    done = zturbo("demo", "--model", "models/small", "--steps", 1)
    assert done.exit_code == 0
    assert "exporting models/small (" in done.stderr


def test_output_below_a_regular_file(zturbo, small_bundle, fake_pipeline, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(zturbo("demo", "--model", "models/small", "--out", "file/demo"), "OutputError")
