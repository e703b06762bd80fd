"""Layers with LoRA inputs: their names and places, what they compute in each form, and the graph they are traced to."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.bundle import load_bundle
from engine.cut import Layout
from engine.errors import OptionInvalid
from engine.rewrite import read_model
from engine.wiring import LORA
from export.lean import make_lean
from export.lora_inputs import ALIGNMENT, aliases_of, check_rank, lora_inputs, take_loras
from tests.lora_files import kohya, kohya_xl, unet_layers

RANK = 4


@pytest.fixture(scope="module", params=[False, True], ids=["pointwise", "linear"])
def unet(request, tiny_source):
    """Projections in and out are 1×1 convolutions in SD 1.x, linear in 2.x and SDXL."""
    config = json.loads((tiny_source / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config({**config, "use_linear_projection": request.param}).eval()


@pytest.fixture(scope="module")
def call(unet):
    generator = torch.Generator().manual_seed(0)
    arguments = (torch.randn(2, 4, 16, 24, generator=generator), torch.tensor([3.0, 700.0]),
                 torch.randn(2, 77, 32, generator=generator))  # fmt: skip

    def run(module):
        with torch.no_grad():
            return module(*arguments).sample

    return run


@pytest.fixture
def inputs(unet):
    return lora_inputs(dict(unet.config), RANK)


@pytest.fixture
def values(inputs):
    return 0.2 * torch.randn(2, RANK, inputs.size, generator=torch.Generator().manual_seed(1))


def test_the_layers_are_those_of_the_transformer_blocks(unet, inputs):
    assert [layer.name for layer in inputs.layers] == unet_layers(unet)
    for layer in inputs.layers:
        assert unet.get_submodule(layer.name).weight.shape[:2] == (layer.outputs, layer.inputs)


def test_columns_are_aligned_and_nobody_elses(inputs):
    ranges = sorted(
        (begin, begin + count)
        for layer in inputs.layers
        for begin, count in ((layer.down, layer.inputs), (layer.up, layer.outputs))
    )
    assert all(begin % ALIGNMENT == 0 for begin, _ in ranges)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
    assert ranges[-1][1] <= inputs.size


def test_stems_are_those_of_the_programs_and_no_two_layers_share_one(inputs):
    stems = [stem for layer in inputs.layers for stem in layer.aliases]
    assert len(stems) == len(set(stems))
    for layer in inputs.layers:
        for names in (kohya, kohya_xl):
            pair = SimpleNamespace(component="unet", path=layer.name)
            assert names(pair)[0].removesuffix(".lora_down.weight") in layer.aliases


def test_names_of_the_original_unet():
    """SDXL's: two layers to a block, three transformers at the middle size on the way up."""
    known = {
        "down_blocks.1.attentions.0.proj_in": "lora_unet_input_blocks_4_1_proj_in",
        "down_blocks.2.attentions.1.transformer_blocks.3.attn1.to_q":
            "lora_unet_input_blocks_8_1_transformer_blocks_3_attn1_to_q",
        "mid_block.attentions.0.transformer_blocks.9.ff.net.2":
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0":
            "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_out_0",
    }  # fmt: skip
    for name, stem in known.items():
        assert stem in aliases_of(name, 2)
    older = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    assert older in aliases_of("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", 2)


@pytest.mark.parametrize("lean", [False, True])
def test_zeros_change_no_bit(unet, call, inputs, values, lean):
    plain, taking = copy.deepcopy(unet), copy.deepcopy(unet)
    wire = take_loras(taking, inputs)
    if lean:
        make_lean(plain)
        make_lean(taking)
    wire.value = torch.zeros_like(values)
    assert torch.equal(call(taking), call(plain))


@pytest.mark.parametrize("lean", [False, True])
def test_each_row_gets_its_own_product(unet, call, inputs, values, lean):
    """Against weights that the products were added to, row by row; fp32 sums in another order."""
    taking = copy.deepcopy(unet)
    wire = take_loras(taking, inputs)
    if lean:
        make_lean(taking)
    wire.value = values
    found = call(taking)
    for row in range(2):
        merged = copy.deepcopy(unet)
        for layer in inputs.layers:
            a, b = (values[row, :, at : at + n] for at, n in ((layer.down, layer.inputs), (layer.up, layer.outputs)))
            weight = merged.get_submodule(layer.name).weight
            weight.data += (b.T @ a).reshape(weight.shape)
        expected = call(merged)[row]
        assert (found[row] - expected).abs().max() <= 2e-5 * expected.abs().max()
        assert (expected - call(unet)[row]).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("rank", [-1, 129])
def test_ranks_that_are_none(rank):
    with pytest.raises(OptionInvalid, match="1 to 128"):
        check_rank(rank)


def graphs(folder, precision="fp32"):
    return {graph.name: graph for graph in load_bundle(folder).graphs(precision)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_keys_and_values_of_the_base_stay_hoisted(lora_bundle, tiny_bundle, precision):
    own, plain = graphs(lora_bundle, precision), graphs(tiny_bundle, precision)
    assert len(own["prologue"].outputs) >= len(plain["prologue"].outputs)
    assert [binding.name for binding in own["prologue"].inputs] == ["encoder_hidden_states"]
    (wire,) = [binding for binding in own["denoiser"].inputs if binding.name == LORA]
    told = load_bundle(lora_bundle).lora_inputs
    assert wire.shape == ("rows", told.rank, told.size)
    assert wire.dtype == {"fp32": "float32", "fp16": "float16"}[precision]


def test_parts_read_the_wire_and_hand_on_no_slice_of_it(lora_bundle):
    path = lora_bundle / graphs(lora_bundle, "fp16")["denoiser"].file
    layout = Layout(read_model(path.read_bytes(), path.parent))
    reading = [layout.inputs((k, 4)) for k in range(1, 5)]
    assert all(LORA in names for names in reading)
    made = {name for node in layout.steps if node.op_type == "Slice" and LORA in node.input for name in node.output}
    assert made
    assert all(made.isdisjoint(names) for names in reading)


def test_the_reference_is_small_though_the_wire_is_not(lora_bundle):
    """Values that repeat compress: ten rows of it would be 3.7 MB more than what the plain bundle has."""
    with np.load(lora_bundle / "reference.npz") as arrays:
        wires = [arrays[name] for name in arrays.files if name.endswith(f"/{LORA}")]
    assert len(wires) == 5
    assert all(wire.any() for wire in wires)
    assert (lora_bundle / "reference.npz").stat().st_size < 3e6
