"""The cost of LoRA inputs as one JSON line, of two bundles of one model."""

from __future__ import annotations

import json

from benchmarks.lora_cost import main


def test_one_line(tiny_bundle, lora_bundle, capsys):
    main([
        str(tiny_bundle), str(lora_bundle), "--backend", "onnxruntime", "--precision", "fp32", "--steps", "2",
        "--pairs", "3", "--size", "128",
    ])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert (found["rank"], found["pairs"], found["backend"]) == (8, 3, "onnxruntime")
    assert found["plain_ms"] > 0
    assert found["loras_ms"] > 0
