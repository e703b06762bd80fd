"""The short run of all stages: how it is wired, what a bundle records of it, and that a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.binding import Binding, Graph, Stage
from engine.bundle import Bundle, load_bundle
from engine.errors import ExportMismatch
from engine.wiring import launched
from export.check import LOOP_TOLERANCE, Sessions, check_loop
from export.loop import EVALUATIONS, Loop, loop_errors, padded, run_stages
from export.solver import COLUMNS, ROWS


def graph(name: str, stage: Stage, inputs: str, outputs: str) -> Graph:
    def bindings(names: str) -> tuple[Binding, ...]:
        return tuple(Binding(name=n, dtype="float32", shape=(1,), lifetime="transient") for n in names.split())

    carried = {n.removeprefix("next_"): n for n in outputs.split() if n.startswith("next_")}
    return Graph(
        name=name, stage=stage, file=name, precision="fp32", inputs=bindings(inputs), outputs=bindings(outputs),
        carried=carried,
    )  # fmt: skip


def test_stages_are_wired_by_name_and_carried_pairs_change_places_after_each_pass() -> None:
    graphs = [
        graph("start", "once", "noise", "latents sample"),
        graph("denoiser", "loop", "sample", "noise_pred"),
        graph("solver", "loop", "noise_pred latents", "next_latents sample"),
        graph("late", "loop", "latents", "seen"),
        graph("decoder", "final", "latents", "images"),
    ]
    calls = []

    def run(name, inputs):
        calls.append((name, *inputs.values()))
        values = {
            "start": lambda noise: (noise, noise + 1),
            "denoiser": lambda sample: (10 * sample,),
            "solver": lambda e, x: (x + e, x + 2),
            "late": lambda x: (x,),
            "decoder": lambda x: (-x,),
        }[name](*inputs.values())
        outputs = next(g.outputs for g in graphs if g.name == name)
        return {b.name: v for b, v in zip(outputs, values, strict=True)}

    wires = run_stages(graphs, {"noise": 1}, 2, run)
    assert calls == [
        ("start", 1),
        ("denoiser", 2), ("solver", 20, 1), ("late", 1),
        ("denoiser", 3), ("solver", 30, 21), ("late", 21),
        ("decoder", 51),
    ]  # fmt: skip
    assert wires["images"] == -51


def test_a_table_is_padded_with_rows_that_change_nothing() -> None:
    table = np.ones((3, len(COLUMNS)), np.float32) * 7
    out = padded(table)
    assert out.shape == (ROWS, len(COLUMNS))
    assert np.array_equal(out[:3], table)
    assert {name: out[3, k] for k, name in enumerate(COLUMNS) if out[3, k]} == {"a": 1, "s": 1}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def recorded(tiny_bundle: Path, bundle: Bundle) -> Loop:
    """The loop as reference.npz has it."""
    with np.load(tiny_bundle / bundle.reference.file) as file:
        arrays = {name.removeprefix("loop/"): file[name] for name in file.files if name.startswith("loop/")}
    case = bundle.reference.loop
    results = {name: arrays.pop(name) for name in ("latents", "images")}
    return Loop(case.dims, case.evaluations, arrays, results)


def test_a_bundle_records_every_wire_of_the_host_and_what_comes_out(bundle: Bundle, recorded: Loop) -> None:
    graphs = bundle.graphs("fp32")
    ran = launched(graphs, recorded.host)
    assert [one.name for one in graphs if one not in ran] == ["encoder", "preview"]
    made = {binding.name for one in ran for binding in one.outputs}
    fed = {binding.name: binding for one in ran for binding in one.inputs if binding.name not in made}
    assert set(recorded.host) == set(fed)
    assert set(np.unique(recorded.host["mask"])) == {0, 1}
    for name, array in recorded.host.items():
        assert array.shape == fed[name].resolve(recorded.dims)
        assert array.dtype == fed[name].dtype
    assert recorded.evaluations >= EVALUATIONS
    assert (recorded.dims["rows"], recorded.dims["samples"]) == (2, 1)
    assert recorded.host["guidance_scale"] == bundle.defaults.guidance_scale + bundle.guidance_offset
    assert recorded.results["images"].dtype == np.uint8
    assert 1e-5 < bundle.reference.loop.fp16_error["latents"] < 1e-2
    assert set(bundle.reference.loop.fp16_error) == {"latents", "images"}


def test_the_graphs_of_a_bundle_give_the_recorded_loop(tiny_bundle: Path, bundle: Bundle, recorded: Loop) -> None:
    """And not so closely that nothing was computed: the tolerance is a rounding's, several times over."""
    graphs = bundle.graphs("fp32")
    run, half = (Sessions(tiny_bundle, bundle.graphs(precision)).run for precision in ("fp32", "fp16"))
    errors = loop_errors(recorded, graphs, run)
    assert 0 < errors["latents"] < LOOP_TOLERANCE
    longer = Loop(recorded.dims, recorded.evaluations + 1, recorded.host, recorded.results)
    turned = {**recorded.host, "cond_row": recorded.host["uncond_row"], "uncond_row": recorded.host["cond_row"]}
    for wrong in (
        Loop(recorded.dims, recorded.evaluations - 1, recorded.host, recorded.results),
        Loop(recorded.dims, recorded.evaluations, turned, recorded.results),
    ):
        with pytest.raises(ExportMismatch, match=r"loop of \d evaluations \(fp32\), 'latents': got relative error"):
            check_loop(wrong, "fp32", graphs, run, {})
    with pytest.raises(ExportMismatch, match=r"'latents': got torch's own fp16 is not finite"):
        check_loop(recorded, "fp16", bundle.graphs("fp16"), half, {"latents": float("inf")})
    check_loop(longer, "fp32", graphs, run, {})  # the table's padding keeps a finished sample as it is
