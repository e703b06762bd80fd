"""What an installed library can do, for tests that need it; asked by trying, not by version."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper


def layer_norm_broadcasts() -> bool:
    """Whether ONNX Runtime, where there is one, takes LayerNormalization with a scale of length 1 (1.23 does not)."""
    try:
        import onnxruntime
    except ImportError:
        return True
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    node = helper.make_node("LayerNormalization", ["x", "one"], ["y"])
    graph = helper.make_graph([node], "probe", [x], [y], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((2, 3), np.float32)})
    except Exception:  # noqa: BLE001 - the binding raises many types of its own
        return False
    return True


needs_layer_norm_that_broadcasts = pytest.mark.skipif(
    not layer_norm_broadcasts(), reason="this ONNX Runtime refuses LayerNormalization with a scale of length 1"
)
