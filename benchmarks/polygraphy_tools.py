"""What is used of Polygraphy, and a runner on top of it that chains others. Knows neither bundles nor plans' files.

Polygraphy is no dependency of the product: it is imported when `load_tools` is called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.binding import Array, Binding
from engine.errors import ExtraMissing


@dataclass(frozen=True, slots=True)
class Tools:
    """comparator: Polygraphy's. onnxruntime: a runner of an ONNX file on the CPU. tensorrt: one of a plan's bytes, with
    an optimization profile. chain: one of a name, the bindings of its inputs and outputs, and runners that run in turn,
    for each sample by itself where one_by_one is set.
    """

    comparator: Any
    onnxruntime: Callable[[str], Any]
    tensorrt: Callable[[bytes, int], Any]
    chain: Callable[..., Any]


def load_tools(flavour: str) -> Tools:
    """Import Polygraphy for a flavour. Raises ExtraMissing.

    Which TensorRT it speaks to is read from the environment when it is imported: one flavour for each process.
    """
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavour == "tensorrt_rtx" else "0"
    try:
        importlib.import_module("onnxruntime")
        ort, trt = (importlib.import_module(f"polygraphy.backend.{name}") for name in ("onnxrt", "trt"))
        comparator, logger = (importlib.import_module(f"polygraphy.{name}") for name in ("comparator", "logger"))
    except ImportError as error:
        raise ExtraMissing(
            "crosscheck", actual=f"{error.name} cannot be imported", allowed="polygraphy and onnxruntime",
            remedy="Run `pip install 'zturbo[cpu,dev]'`.",
        ) from error  # fmt: skip
    logger.G_LOGGER.module_severity = logger.G_LOGGER.ERROR
    return Tools(
        comparator=comparator.Comparator,
        onnxruntime=lambda path: ort.OnnxrtRunner(ort.SessionFromOnnx(path, providers=["cpu"])),
        tensorrt=lambda raw, profile: trt.TrtRunner(trt.EngineFromBytes(raw), optimization_profile=profile),
        chain=_chain_class(),
    )


def _chain_class() -> Callable[..., Any]:
    """A class, made once Polygraphy is there."""
    base, common, datatype = (
        importlib.import_module(f"polygraphy.{n}") for n in ("backend.base", "common", "datatype")
    )

    class Chain(base.BaseRunner):  # type: ignore[misc, name-defined]  # imported at run time
        """Runners wired by name; each is fed in the types that it takes."""

        def __init__(
            self, name: str, inputs: Sequence[Binding], outputs: Sequence[Binding], runners: Any, one_by_one: bool
        ) -> None:
            super().__init__(name=name)
            self._inputs, self._outputs, self._runners, self._one_by_one = inputs, outputs, runners, one_by_one

        def activate_impl(self) -> None:
            for runner in self._runners:
                runner.activate()

        def deactivate_impl(self) -> None:
            for runner in reversed(self._runners):
                runner.deactivate()

        def get_input_metadata_impl(self) -> Any:
            found = common.TensorMetadata()
            for binding in self._inputs:
                shape = [axis if isinstance(axis, int) else -1 for axis in binding.shape]
                found.add(binding.name, datatype.DataType.from_dtype(np.dtype(binding.dtype)), shape)
            return found

        def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            self.inference_time = 0.0
            return by_sample(self._infer, feed_dict) if self._one_by_one else self._infer(feed_dict)

        def _infer(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            values, seconds = _in_turn(self._runners, feed_dict, datatype.DataType)
            self.inference_time += seconds
            return {one.name: values[one.name] for one in self._outputs}

    return Chain


def _in_turn(runners: Sequence[Any], feed: dict[str, Array], types: Any) -> tuple[dict[str, Array], float]:
    """Every wire once the runners ran one after another, and the seconds that took. types: Polygraphy's DataType."""
    values, seconds = dict(feed), 0.0
    for runner in runners:
        made = runner.infer(_taken(runner, values, types))
        values |= {name: np.array(array) for name, array in made.items()}
        seconds += runner.last_inference_time()
    return values, seconds


def by_sample(infer: Callable[[dict[str, Array]], dict[str, Array]], feed: dict[str, Array]) -> dict[str, Array]:
    """What is inferred of each entry along the first axis, put together again."""
    count = min(len(array) for array in feed.values())
    made = [infer({name: array[k : k + 1] for name, array in feed.items()}) for k in range(count)]
    return {name: np.concatenate([one[name] for one in made]) for name in made[0]}


def _taken(runner: Any, values: dict[str, Array], types: Any) -> dict[str, Array]:
    """What a runner takes of these arrays, in its own types. types: Polygraphy's DataType."""
    wanted = runner.get_input_metadata(use_numpy_dtypes=False)
    return {name: values[name].astype(types.to_dtype(meta.dtype, "numpy")) for name, meta in wanted.items()}
