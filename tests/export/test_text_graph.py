"""The conditioning graph: chunks apart, layers skipped as diffusers does, weights as the web UI has them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.bundle import load_bundle  # noqa: E402
from engine.cut import outline  # noqa: E402
from engine.rewrite import read_model  # noqa: E402
from export.check import Sessions, open_session  # noqa: E402
from export.text_graph import emphasized  # noqa: E402
from runtime.text import Tokenizer  # noqa: E402
from tests.independent import Encoder  # noqa: E402

PROMPTS = ("a cat", "", "a small cat on a mat, naïve", "x " * 36)


@pytest.fixture(scope="module")
def encoder(tiny_source) -> Encoder:
    return Encoder(tiny_source)


@pytest.fixture(scope="module")
def graph(tiny_bundle):
    """{input: array} → encoder_hidden_states, by the exported fp32 graph in ONNX Runtime."""
    sessions = Sessions(tiny_bundle, load_bundle(tiny_bundle).graphs("fp32"))
    return lambda **inputs: sessions.run("conditioning", inputs)["encoder_hidden_states"]


def rows(tiny_bundle, *texts, tokens=77):
    tokenizer = Tokenizer(tiny_bundle, load_bundle(tiny_bundle))
    return tokenizer.rows([(text, True) for text in texts], tokens)


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_plain_prompts_are_those_of_diffusers(tiny_bundle, encoder, graph, clip_skip):
    """Both sum in fp32, in other orders: 1e-5 of values that are 4 at most."""
    found = graph(**rows(tiny_bundle, *PROMPTS), clip_skip=np.full(len(PROMPTS), clip_skip, np.int32))
    expected = encoder.encode_prompt(PROMPTS, clip_skip)
    assert np.abs(found - expected).max() <= 1e-5
    if clip_skip == 0:
        assert np.abs(found - encoder.encode_prompt(PROMPTS, None)).max() <= 1e-5


def test_each_row_skips_its_own_layers(tiny_bundle, graph):
    inputs = rows(tiny_bundle, "a cat", "a cat", "a cat")
    each = graph(**inputs, clip_skip=np.array([0, 1, 2], np.int32))
    for row, skip in enumerate(range(3)):
        assert np.array_equal(each[row], graph(**inputs, clip_skip=np.full(3, skip, np.int32))[row])
    assert np.abs(each[0] - each[1]).max() > 0.01
    assert np.abs(each[1] - each[2]).max() > 0.01


def test_chunks_are_encoded_apart(tiny_bundle, graph):
    long = rows(tiny_bundle, "a cat BREAK x BREAK the rest", "a cat", tokens=231)
    found = graph(**long, clip_skip=np.array([0, 1], np.int32))
    for row, texts, skip in ((0, ("a cat", "x", "the rest"), 0), (1, ("a cat", "", ""), 1)):
        parts = graph(**rows(tiny_bundle, *texts), clip_skip=np.full(3, skip, np.int32))
        assert np.abs(found[row] - parts.reshape(231, -1)).max() <= 1e-6


@pytest.mark.parametrize("text", ["a (cat:1.5) on a [mat]", "((a)) cat (dog:0)", "(a BREAK b:0.7) c"])
def test_weights_are_those_of_an_independent_computation(tiny_bundle, encoder, graph, text):
    tokenizer = Tokenizer(tiny_bundle, load_bundle(tiny_bundle))
    inputs = tokenizer.rows([(text, True)], tokenizer.length([(text, True)]))
    found = graph(**inputs, clip_skip=np.zeros(1, np.int32))
    assert np.abs(found - encoder.weighted(inputs["input_ids"], inputs["token_weights"])).max() <= 1e-5
    plain = graph(**{**inputs, "token_weights": np.ones_like(inputs["token_weights"])}, clip_skip=np.zeros(1, np.int32))
    assert np.abs(found - plain).max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_of_one_change_no_bit(dtype):
    hidden = torch.randn(3, 77, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.ones(3, 77, 1)
    weights[1, 5] = 1.5
    found = emphasized(hidden, weights)
    assert found.dtype == dtype
    assert torch.equal(found[[0, 2]], hidden[[0, 2]])
    assert not torch.equal(found[1], hidden[1])


def test_the_mean_of_each_chunk_stays_where_there_is_one():
    hidden = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.5, 0.0]).view(2, 1, 1)
    hidden[1] -= hidden[1].mean()
    weights = torch.linspace(0.5, 1.5, 77).view(1, 77, 1).expand(2, 77, 1)
    found = emphasized(hidden, weights)
    assert found[0].mean().item() == pytest.approx(hidden[0].mean().item(), rel=1e-5)
    assert torch.equal(found[1], hidden[1] * weights[1])


def test_a_chunk_of_weight_zero_is_finite():
    found = emphasized(torch.ones(1, 77, 32), torch.zeros(1, 77, 1))
    assert torch.equal(found, torch.zeros(1, 77, 32))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_builds_nodes_can_be_told(tiny_bundle, precision):
    """The graph takes whole chunks alone, so it is followed at sizes of such."""
    graph = next(graph for graph in load_bundle(tiny_bundle).graphs(precision) if graph.name == "conditioning")
    path = tiny_bundle / graph.file
    found = outline(read_model(path.read_bytes(), path.parent))
    assert found.blocks > 3  # of three layers
    assert 70 < found.nodes < 200


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_tokens_axis_stays_open_in_every_graph(tiny_bundle, precision):
    """One, two and three chunks, though graphs are traced with two."""
    graphs = [g for g in load_bundle(tiny_bundle).graphs(precision) if any("tokens" in b.shape for b in g.bindings)]
    assert [graph.name for graph in graphs] == ["conditioning", "prologue", "denoiser"]
    rng = np.random.default_rng(0)
    for graph in graphs:
        session = open_session(tiny_bundle / graph.file)
        for tokens in (77, 154, 231):
            dims = {"rows": 2, "tokens": tokens, "height": 128, "width": 136}
            feed = {b.name: rng.integers(0, 2, b.resolve(dims)).astype(b.dtype) for b in graph.inputs}
            for binding, array in zip(graph.outputs, session.run(None, feed), strict=True):
                assert array.shape == binding.resolve(dims)
                assert np.isfinite(array).all()
