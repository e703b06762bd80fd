"""The choice of a backend: its order, why those before it were passed over, and options that mean nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engine.errors import BackendUnavailable, BundleDamaged, BundleError, OptionInvalid
from runtime.backends import NAMES
from runtime.pipeline import Pipeline
from runtime.request import Request
from tests.fake_backend import FakeBackend
from tests.fake_bundle import edit


@pytest.fixture
def backends(monkeypatch):
    """Stand-ins for every backend: {name: an error to raise, or None}; all asked are listed in `asked`."""
    found = SimpleNamespace(errors=dict.fromkeys(NAMES), asked=[], opened=[])

    def module(name):
        def open_backend(folder, bundle, options):
            found.asked.append((name, options))
            if found.errors[name] is not None:
                raise found.errors[name]
            found.opened.append(FakeBackend(precision=options.precision or "fp32"))
            return found.opened[-1]

        return SimpleNamespace(open_backend=open_backend)

    for name in NAMES:
        monkeypatch.setitem(sys.modules, f"runtime.backends.{name}", module(name))
    return found


def unavailable(reason):
    return BackendUnavailable("backend", actual=reason, allowed="another", remedy="Mend it.")


def test_auto_takes_the_first(backends, bundle_folder):
    with Pipeline.load(bundle_folder) as pipeline:
        assert [(v.name, v.reason) for v in pipeline.verdicts] == [("tensorrt", None)]
    assert [name for name, _ in backends.asked] == ["tensorrt"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_auto_says_why_those_before_could_not(backends, bundle_folder, count):
    for name in NAMES[:count]:
        backends.errors[name] = unavailable(f"no {name} here")
    with Pipeline.load(str(bundle_folder)) as pipeline:
        verdicts = pipeline.verdicts
    assert tuple(verdict.name for verdict in verdicts) == NAMES[: count + 1]
    assert [f"no {v.name} here" in v.reason for v in verdicts[:-1]] == [True] * count
    assert verdicts[-1].reason is None


def test_auto_with_none_left_names_each_reason(backends, bundle_folder):
    for name in NAMES:
        backends.errors[name] = unavailable(f"no {name} here")
    with pytest.raises(BackendUnavailable) as caught:
        Pipeline.load(bundle_folder)
    assert all(f"{name}: backend: got no {name} here" in caught.value.actual for name in NAMES)
    assert caught.value.subject == "bundle 'fake'"


def test_a_named_backend_has_no_fallback(backends, bundle_folder):
    backends.errors["pytorch"] = unavailable("no torch")
    with pytest.raises(BackendUnavailable, match="no torch"):
        Pipeline.load(bundle_folder, "pytorch")
    assert [name for name, _ in backends.asked] == ["pytorch"]


@pytest.mark.parametrize("error", [BundleDamaged("x", actual="a", allowed="b", remedy="c"), MemoryError()])
def test_auto_passes_over_nothing_but_unavailable(backends, bundle_folder, error):
    backends.errors["tensorrt"] = error
    with pytest.raises(type(error)):
        Pipeline.load(bundle_folder)
    assert len(backends.asked) == 1


def test_options_reach_the_backend(backends, bundle_folder):
    asked = {"precision": "fp16", "device": "cuda:1", "threads": 3, "capture": False}
    with Pipeline.load(bundle_folder, "onnxruntime", **asked) as pipeline:
        result = pipeline.generate(Request(prompt="a cat", num_inference_steps=1))
    options = backends.asked[0][1]
    assert {name: getattr(options, name) for name in asked} == asked
    assert result.metadata["precision"] == "fp16"


@pytest.mark.parametrize("name", ["", "Auto", "tensorRT", "base", "../base", "os", "onnxruntime ", None])
def test_unknown_backends(backends, bundle_folder, name):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, name)
    assert (caught.value.subject, caught.value.actual) == ("backend", repr(name))
    assert caught.value.allowed == "auto, tensorrt, tensorrt_rtx, onnxruntime, pytorch"
    assert not backends.asked


@pytest.mark.parametrize("precision", ["", "int8", "FP16", "float32"])
def test_unknown_precisions(backends, bundle_folder, precision):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, precision=precision)
    assert (caught.value.subject, caught.value.actual) == ("bundle 'fake', precision", precision)
    assert caught.value.allowed == "fp16, fp32"
    assert not backends.asked


def test_bf16_is_of_the_fp16_variant(backends, bundle_folder, own_bundle):
    with Pipeline.load(bundle_folder, precision="bf16") as pipeline:
        assert pipeline.generate(Request(prompt="a cat", num_inference_steps=1)).metadata["precision"] == "bf16"
    edit(own_bundle, lambda body: body["variants"].pop("fp16"))
    with pytest.raises(OptionInvalid, match="got fp16; allowed: fp32"):
        Pipeline.load(own_bundle, precision="bf16")


def test_a_precision_that_was_not_exported(backends, own_bundle):
    edit(own_bundle, lambda body: body["variants"].pop("fp16"))
    with pytest.raises(
        OptionInvalid, match=r"got fp16; allowed: fp32\. Export the source again with `--precision both`"
    ):
        Pipeline.load(own_bundle, precision="fp16")


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**9, True, False, 1.0, "4", np.int64(4)])
def test_threads_that_mean_nothing(backends, bundle_folder, threads):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, threads=threads)
    assert (caught.value.subject, caught.value.allowed) == ("threads", "1 to 1024")
    assert not backends.asked


@pytest.mark.parametrize("most", [0, -1, 1025, True, 1.0, "4", np.int64(4)])
def test_batches_that_mean_nothing(backends, bundle_folder, most):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, max_batch_size=most)
    assert (caught.value.subject, caught.value.allowed) == ("max_batch_size", "1 to 1024")


@pytest.mark.parametrize("cache_mib", [-1, (1 << 20) + 1, None, True, 1.0, "4", np.int64(4)])
def test_caches_that_mean_nothing(backends, bundle_folder, cache_mib):
    with pytest.raises(OptionInvalid) as caught:
        Pipeline.load(bundle_folder, cache_mib=cache_mib)
    assert (caught.value.subject, caught.value.allowed) == ("cache_mib", "0 to 1048576")
    assert not backends.asked


def test_a_backend_is_closed_where_the_bundle_then_fails(backends, own_bundle):
    path = own_bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"</s>", b"</z>"))
    with pytest.raises(BundleError):
        Pipeline.load(own_bundle)
    assert all(backend.events == ["close"] for backend in backends.opened)


class TestOnnxRuntime:
    """Its own options, on this machine's library."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("onnxruntime")

    @pytest.mark.parametrize("device", ["", "gpu", "cpu:x", "cuda0", "cpu:-1", "cpu:1.5", "/dev/sda"])
    def test_unknown_devices(self, bundle_folder, device):
        with pytest.raises(OptionInvalid) as caught:
            Pipeline.load(bundle_folder, "onnxruntime", device=device)
        assert (caught.value.subject, caught.value.actual) == ("device", repr(device))
        assert "cpu" in caught.value.allowed

    def test_it_has_no_bf16(self, bundle_folder):
        with pytest.raises(BackendUnavailable, match="precision bf16; allowed: fp32, fp16"):
            Pipeline.load(bundle_folder, "onnxruntime", precision="bf16")

    def test_a_graph_that_is_no_graph(self, bundle_folder):
        with pytest.raises(BackendUnavailable, match=r"conditioning\.onnx was refused"):
            Pipeline.load(bundle_folder, "onnxruntime")

    def test_a_damaged_graph_is_never_opened(self, own_bundle):
        path = own_bundle / "graphs" / "fp32" / "conditioning.onnx"
        path.write_bytes(path.read_bytes().upper())
        with pytest.raises(BundleDamaged, match=r"conditioning\.onnx: got sha256"):
            Pipeline.load(own_bundle, "onnxruntime", precision="fp32")
