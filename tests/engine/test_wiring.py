"""Graphs that do not feed each other are refused when the bundle is loaded, though every hash is right."""

from __future__ import annotations

import pytest

from engine.errors import BundleInvalid
from tests.fake_bundle import SIGNATURES, edit

GRAPH = {name: index for index, name in enumerate(SIGNATURES)}


def graph(body, name):
    return body["variants"]["fp32"][GRAPH[name]]


def binding(body, name, wire, kind="inputs"):
    return next(one for one in graph(body, name)[kind] if one["name"] == wire)


def templated(body, **changes):
    """The body's tokenizer as one whose prompts stand in a template."""
    file = body["tokenizer"]["file"]
    return {"kind": "templated", "file": file, "prefix": "a", "suffix": "b", "pad_id": 1, **changes}


WIRINGS = {
    "a prologue of a graph that is not there": (
        lambda b: graph(b, "conditioning").update(hoisted_from="denoisers"),
        "graph 'conditioning' (once): hoisted from 'denoisers', no graph of the loop",
    ),
    "a prologue of a graph that runs once": (
        lambda b: graph(b, "conditioning").update(hoisted_from="start"),
        "hoisted from 'start', no graph of the loop",
    ),
    "a prologue in the loop": (
        lambda b: graph(b, "solver").update(hoisted_from="denoiser"),
        "graph 'solver' (loop): hoisted from 'denoiser'",
    ),
    "an input that nothing feeds": (
        lambda b: binding(b, "denoiser", "sample").update(name="samples_in"),
        "nothing feeds its input 'samples_in'",
    ),
    "an input that only a later graph makes": (
        lambda b: graph(b, "start")["inputs"].append(binding(b, "solver", "noise_pred")),
        "nothing feeds its input",
    ),
    "another dtype on a wire": (
        lambda b: binding(b, "decoder", "latents").update(dtype="float16"),
        "float16 (samples, 4, height/8, width/8)",
    ),
    "another shape on a wire": (
        lambda b: binding(b, "decoder", "latents").update(shape=["rows", 4, "height/8", "width/8"]),
        "'latents'",
    ),
    "another rank on a wire": (lambda b: binding(b, "decoder", "latents").update(shape=["samples"]), "'latents'"),
    "an unknown axis": (
        lambda b: binding(b, "conditioning", "encoder_hidden_states", "outputs").update(shape=["rows", "depth"]),
        "unknown axis 'depth'",
    ),
    "an axis divided by 0": (
        lambda b: binding(b, "denoiser", "noise_pred", "outputs").update(shape=["height/0"]),
        "unknown axis 'height/0'",
    ),
    "an axis divided by a word": (
        lambda b: binding(b, "denoiser", "noise_pred", "outputs").update(shape=["height/x"]),
        "unknown axis 'height/x'",
    ),
    "an axis divided by nothing": (
        lambda b: binding(b, "denoiser", "noise_pred", "outputs").update(shape=["height/"]),
        "unknown axis 'height/'",
    ),
    "a negative axis": (
        lambda b: binding(b, "denoiser", "noise_pred", "outputs").update(shape=[-1]),
        "unknown axis -1",
    ),
    "ids of another type than the host's": (
        lambda b: binding(b, "conditioning", "input_ids").update(dtype="float32"),
        "a wire that is int32 (rows, tokens)",
    ),
    "a table of other columns than the file's": (
        lambda b: b["tables"].update(columns=b["tables"]["columns"][:-1]),
        "on a wire that is float32 (samples, 200, 14)",
    ),
    "a table of other rows than the file's": (lambda b: b["tables"].update(rows=100), "float32 (samples, 100, 15)"),
    "other latents than the graphs'": (lambda b: b["latents"].update(channels=16), "'image_noise'"),
    "a carried wire that is no input": (
        lambda b: graph(b, "solver").update(carried={"images": "next_latents"}),
        "carried pair 'images' → 'next_latents'",
    ),
    "a carried pair of two shapes": (
        lambda b: graph(b, "solver").update(carried={"latents": "next_history"}),
        "carried pair",
    ),
    "an output that is its own input": (
        lambda b: graph(b, "denoiser")["outputs"].append(binding(b, "denoiser", "sample")),
        "'sample' is bound twice",
    ),
    "a graph twice": (
        lambda b: b["variants"]["fp32"].insert(GRAPH["denoiser"], graph(b, "denoiser")),
        "'denoiser' is listed twice",
    ),
    "stages out of order": (lambda b: graph(b, "denoiser").update(stage="final"), "graphs out of order"),
    "no picture": (lambda b: b["variants"]["fp32"].pop(GRAPH["decoder"]), "makes 'images' as uint8"),
    "a picture that the loop makes": (lambda b: graph(b, "decoder").update(stage="loop"), "makes 'images' as uint8"),
    "a graph that waits for what is not the host's": (
        lambda b: graph(b, "start").update(only_with=["table", "latents"]),
        "graph 'start' (once): only with wires that are not the host's, or not its own",
    ),
    "a graph that waits for what it does not read": (
        lambda b: graph(b, "encoder").update(only_with=["mask"]),
        "only with wires that are not the host's, or not its own",
    ),
    "a graph that may be left out of a loop": (
        lambda b: graph(b, "denoiser").update(only_with=["image"]),
        "graph 'denoiser' (loop): only with",
    ),
    "a preview that the loop reads": (
        lambda b: binding(b, "solver", "mask").update(name="preview"),
        "nothing feeds its input 'preview'",
    ),
    "a preview that is carried": (
        lambda b: graph(b, "preview").update(carried={"latents": "preview"}),
        "graph 'preview': carried pairs in a graph that may be left out",
    ),
    "no graphs at all": (lambda b: b["variants"].update(fp32=[]), "makes 'images' as uint8"),
    "no variants": (lambda b: b["variants"].clear(), "no graphs"),
    "a graph's file that is not listed": (
        lambda b: graph(b, "solver").update(file="solver.onnx"),
        "'solver.onnx' is used",
    ),
    "a tokenizer that is not listed": (
        lambda b: b["tokenizer"].update(file="none"),
        "file 'none' is used but not listed",
    ),
    "a mask with chunks": (lambda b: b.update(masked=True), "a mask of captions, with a tokenizer of chunks"),
    "prompts cut where they are not padded to": (
        lambda b: b.update(tokenizer=templated(b, max_tokens=500)),
        "at most 500 tokens, which is no multiple of 32",
    ),
    "prompts shorter than what they are padded to": (
        lambda b: b.update(tokenizer=templated(b, max_tokens=16)),
        "at most 16 tokens, which is no multiple of 32",
    ),
    "tables that are not listed": (lambda b: b["files"].pop("tables.npz"), "file 'tables.npz' is used but not listed"),
    "a default scheduler without tables": (lambda b: b["defaults"].update(scheduler="heun"), "scheduler 'heun'"),
    "a default size outside the limits": (lambda b: b["defaults"].update(width=1024), "default size of 1024x128"),
    "limits that cross": (lambda b: b["limits"].update(max_px=64), "a default size of 136x128"),
    "sizes that latents do not divide": (lambda b: b["limits"].update(multiple_px=4), "factor 8"),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_a_wiring_that_does_not_fit_though_the_hash_does(refused, own_bundle, name):
    change, found = WIRINGS[name]
    edit(own_bundle, change)
    assert found in refused(own_bundle, BundleInvalid).actual
