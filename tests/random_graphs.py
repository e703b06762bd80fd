"""Small graphs of random structure for what takes graphs apart: shapes, skips, constants, sizes that no symbol has.

A tensor's kind is its shape: `s` (rows, 4, width), `c` (rows, tokens, 4), `f` (rows·tokens, 4). Without node names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.binding import Binding

Arrays = dict[str, NDArray[np.float32]]
SAMPLE = Binding(name="sample", dtype="float32", shape=("rows", 4, "width"), lifetime="transient")
PROMPT = Binding(name="prompt", dtype="float32", shape=("rows", "tokens", 4), lifetime="per_row")
INPUTS = (SAMPLE, PROMPT)
SIZES = (
    {"rows": 2, "width": 5, "tokens": 3},
    {"rows": 1, "width": 8, "tokens": 7},
    {"rows": 3, "width": 1, "tokens": 4},
)


@dataclass
class RandomGraph:
    """A graph that grows by random steps; each picks operands among all that is there, recent ones more often."""

    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    kinds: dict[str, list[str]] = field(default_factory=lambda: {"s": ["sample"], "c": ["prompt"]})

    def node(self, kind: str, op: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        self.kinds.setdefault(kind, []).append(output)
        return output

    def constant(self, values: object, dtype: type = np.int64) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def pick(self, kind: str) -> str:
        names = self.kinds[kind]
        return names[max(0, len(names) - 1 - int(self.rng.exponential(2)))]

    def step(self) -> None:
        kind = "sc"[self.rng.integers(2)]
        getattr(self, f"_{('unary', 'binary', 'weight', 'shape', 'scale', 'attend', 'flat')[self.rng.integers(7)]}")(
            kind
        )

    def _unary(self, kind: str) -> None:
        self.node(kind, ("Sigmoid", "Neg", "Tanh")[self.rng.integers(3)], self.pick(kind))

    def _binary(self, kind: str) -> None:
        self.node(kind, ("Add", "Sub")[self.rng.integers(2)], self.pick(kind), self.pick(kind))

    def _weight(self, kind: str) -> None:
        """By an Identity of an initializer, as TorchScript writes shared ones."""
        shape = (4, 1) if kind == "s" else (4,)
        weight = self.node("w", "Identity", self.constant(self.rng.standard_normal(shape), np.float32))
        self.node(kind, "Mul", self.pick(kind), weight)

    def _shape(self, kind: str) -> None:
        """Reshaped to the shape of another tensor of its kind: a skip that is used for its size alone."""
        self.node(kind, "Reshape", self.pick(kind), self.node("i", "Shape", self.pick(kind)))

    def _scale(self, kind: str) -> None:
        """By one over its own size along an axis that is always 4, cast from an integer."""
        size = self.node(
            "i", "Gather", self.node("i", "Shape", self.pick(kind)), self.constant(1 if kind == "s" else 2)
        )
        scale = self.node("w", "Reciprocal", self.node("w", "Cast", size, to=TensorProto.FLOAT))
        self.node(kind, "Mul", self.pick(kind), scale)

    def _attend(self, _: str) -> None:
        """A mean over the prompt joins the sample."""
        scores = self.node("x", "MatMul", self.pick("c"), self.pick("s"))
        self.node("s", "Add", self.pick("s"), self.node("m", "ReduceMean", scores, axes=[1], keepdims=1))

    def _flat(self, _: str) -> None:
        """Rows and tokens folded into one axis and unfolded again, by the sizes of one that is not folded."""
        source = self.pick("c")
        flat = self.node("f", "Tanh", self.node("f", "Reshape", source, self.constant([-1, 4])))
        self.node("c", "Reshape", flat, self.node("i", "Shape", source))

    def model(self) -> onnx.ModelProto:
        """Two outputs: the last `s`, and one in the middle of the graph."""
        last = self.kinds["s"][-1] if len(self.kinds["s"]) > 1 else self.node("s", "Neg", "sample")
        made = [node.output[0] for node in self.nodes if node.output[0][0] in "sc" and node.output[0] != last]
        outputs = list(dict.fromkeys([last, *made[len(made) // 2 :][:1]]))
        shapes = {"s": SAMPLE.shape, "c": PROMPT.shape}
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shapes[n[0]])) for n in outputs]
        inputs = [helper.make_tensor_value_info(b.name, TensorProto.FLOAT, list(b.shape)) for b in INPUTS]
        graph = helper.make_graph(self.nodes, "random", inputs, values, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random_model(seed: int, steps: int = 24) -> onnx.ModelProto:
    """A graph of that many steps, the same for a seed."""
    graph = RandomGraph(np.random.default_rng(seed))
    for _ in range(steps):
        graph.step()
    return graph.model()


def feeds(dims: dict[str, int]) -> Arrays:
    """Both inputs at dims."""
    rng = np.random.default_rng(7)
    return {b.name: rng.standard_normal(b.resolve(dims)).astype(np.float32) for b in INPUTS}


def run(model: onnx.ModelProto, wires: Arrays) -> Arrays:
    """The model's outputs from whatever of the wires it reads, by ONNX's own evaluator."""
    names = [value.name for value in model.graph.output]
    inputs = {value.name: wires[value.name] for value in model.graph.input}
    return dict(zip(names, ReferenceEvaluator(model).run(names, inputs), strict=True))
