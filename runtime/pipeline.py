"""From a request to pictures: the readable spine. Names no model family, no scheduler and no vendor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from engine.binding import Dims, PlanPrecision, Precision, variant_of
from engine.bundle import Bundle, load_bundle
from engine.errors import OptionInvalid
from engine.wiring import IMAGE
from runtime.backends import Verdict, open_backend
from runtime.backends.base import Backend, BackendOptions
from runtime.batch import Batch, Sample, split
from runtime.conditioning import ConditioningCache, conditioning_graphs, kept_wires, read_wires
from runtime.denoise import Step, denoise
from runtime.images import Result
from runtime.lengths import by_length, in_order
from runtime.loras import Loras
from runtime.memory import Wiring, Wirings
from runtime.request import Request
from runtime.resolve import Resolved, resolve
from runtime.tables import Tables
from runtime.text import Tokenizer

Pixels = NDArray[np.uint8]
OnStep = Callable[[Step], None]
STAGES = ("conditioning", "loop", "decode", "total")
MAX_THREADS = 1024
MAX_CACHE_MIB = 1 << 20
MAX_BATCH_SIZE = 1024


class Pipeline:
    """A bundle on a backend. One thread generates at a time; others wait. Use `with`, or call close()."""

    def __init__(
        self, folder: Path, bundle: Bundle, backend: Backend, verdicts: Sequence[Verdict] = (), cache_mib: int = 256,
        max_batch_size: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.bundle, self.backend, self.verdicts = folder, bundle, backend, tuple(verdicts)
        self.max_batch_size = max_batch_size
        self._tokenizer, self._tables = Tokenizer(folder, bundle), Tables(folder, bundle)
        self._loras = Loras.of(bundle, variant_of(backend.precision))
        self._wirings, self._conditioning = Wirings(self._wire), ConditioningCache(cache_mib << 20)
        self._lock, self._closed = threading.Lock(), False
        self._painter: int | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        backend: str = "auto",
        *,
        precision: PlanPrecision | None = None,
        device: str | None = None,
        threads: int | None = None,
        capture: bool = True,
        cache_mib: int = 256,
        max_batch_size: int | None = None,
    ) -> Pipeline:
        """Open a bundle. backend: `auto` takes the first that can run here; `verdicts` says why not the ones before.

        precision: `fp32`, `fp16`, or `bf16` where there are plans of it; device: the backend's word for it; threads:
        CPU threads inside a graph. capture: False for plain launches on a backend that captures the loop. cache_mib:
        the most that the conditioning of earlier prompts may occupy; 0 keeps none. max_batch_size: the most pictures
        that are painted at a time; left out, as many as the backend takes. What a backend loads for a size, as
        TensorRT a set of engines, stays until close().
        Raises BundleError, OptionInvalid or BackendUnavailable.
        """
        folder = Path(folder)
        bundle = load_bundle(folder)
        if precision is not None:
            known = precision in get_args(PlanPrecision)
            bundle.graphs(variant_of(precision) if known else cast("Precision", precision))
        if threads is not None:
            _check_count("threads", threads, 1, MAX_THREADS, "Leave it out for all cores.")
        _check_count("cache_mib", cache_mib, 0, MAX_CACHE_MIB, "0 keeps no conditioning.")
        if max_batch_size is not None:
            _check_count("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE, "Leave it out for the backend's own.")
        options = BackendOptions(precision=precision, device=device, threads=threads, capture=bool(capture))
        opened, verdicts = open_backend(backend, folder, bundle, options)
        try:
            return cls(folder, bundle, opened, verdicts, cache_mib, max_batch_size)
        except BaseException:
            opened.close()
            raise

    def generate(self, request: Request, on_step: OnStep | None = None) -> Result:
        """Paint one request. on_step is called once a step is launched; what it raises ends the request.

        Raises RequestInvalid, ShapeOutsideProfile or ExecutionFailed.
        """
        return self.generate_many([request], on_step)[0]

    def generate_many(self, requests: Sequence[Request], on_step: OnStep | None = None) -> list[Result]:
        """Paint requests of one size together; guided and unguided, schedulers and step counts may differ. Those whose
        prompts have equally many chunks of tokens share batches.

        Each picture is the one its request gives alone, up to rounding. Raises as generate does.
        """
        resolved = resolve(requests, self.bundle, self._tables, self._loras)
        with self._turn():
            self._check_open()
            samples = [sample for one in resolved for sample in one.samples]
            lengths = by_length(samples, self._tokenizer)
            batches = self._batches(samples, lengths, resolved[0])
            call = _Call(sum(batch.evaluations for batch in batches), on_step)
            pictures = [picture for batch in batches for picture in self._paint(batch, call)]
        return self._results(resolved, in_order(pictures, lengths), call)

    def _paint(self, batch: Batch, call: _Call) -> Pixels:
        """One batch from prompts to pixels: (samples, H, W, 3) uint8. Adds to the call what it took."""
        clock = Clock(call.seconds)
        wiring = self._wirings.get(batch.dims)
        arrays = batch.host_inputs(self._tables, self._tokenizer, self._loras)
        wiring.write(arrays)
        call.conditioning_cached &= self._conditioning.condition(wiring, arrays)
        wiring.launch("once")
        self.backend.mark()()
        clock.lap("conditioning")
        with closing(denoise(self.backend, wiring, batch.evaluations, call.before, call.total)) as steps:
            for step in steps:
                if call.on_step is not None:
                    call.on_step(step)
        clock.lap("loop")
        wiring.launch("final")
        images = wiring.read("images")
        clock.lap("decode")
        clock.total()
        call.before += batch.evaluations
        return images.astype(np.uint8, copy=False)

    def _batches(self, samples: Sequence[Sample], lengths: dict[int, list[int]], first: Resolved) -> list[Batch]:
        """The samples in batches, length by length, each of which fits: where one does not, none is painted."""
        batches = []
        for tokens, indices in lengths.items():
            counts = self.backend.row_counts(first.height, first.width, tokens)
            groups = split([samples[index] for index in indices], counts, self.max_batch_size)
            batches += [Batch(group, first.latent_shape, first.height, first.width, tokens) for group in groups]
        for batch in batches:
            self._wirings.get(batch.dims).prepare([IMAGE] if batch.has_images else [])
        return batches

    def _wire(self, dims: Dims) -> Wiring:
        graphs = self.bundle.graphs(variant_of(self.backend.precision))
        conditioning = conditioning_graphs(graphs)
        wires = kept_wires(graphs, conditioning), read_wires(conditioning)
        return Wiring(self.backend, graphs, dims, conditioning, *wires)

    def _results(self, resolved: Sequence[Resolved], pictures: Sequence[Pixels], call: _Call) -> list[Result]:
        results, start = [], 0
        for one in resolved:
            count = len(one.samples)
            arrays = np.stack(pictures[start : start + count])
            metadata = {**one.metadata(self._tokenizer), **self._made_by(call)}
            results.append(Result(arrays, dict(call.seconds), metadata))
            start += count
        return results

    def _made_by(self, call: _Call) -> dict[str, Any]:
        """captured: whether the backend replays captures. conditioning_cached: whether all of the call's was kept."""
        names = {"backend": self.backend.name, "device": self.backend.device, "precision": self.backend.precision}
        how = {"captured": self.backend.captures.captured > 0, "conditioning_cached": call.conditioning_cached}
        return {"bundle": self.bundle.name, "bundle_sha256": self.bundle.sha256, **names, **how}

    def _check_open(self) -> None:
        if self._closed:
            raise OptionInvalid(
                f"pipeline '{self.bundle.name}'", actual="closed", allowed="an open pipeline", remedy="Load it again."
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time. A call from within on_step would wait for itself for ever, so it is refused."""
        if self._painter == threading.get_ident():
            raise OptionInvalid(
                f"pipeline '{self.bundle.name}'", actual="a call from within on_step", allowed="one request at a time",
                remedy="To end a request, raise an exception in on_step; then call again.",
            )  # fmt: skip
        with self._lock:
            self._painter = threading.get_ident()
            try:
                yield
            finally:
                self._painter = None

    def close(self) -> None:
        """Free what the backend holds; a second call does nothing."""
        with self._turn():
            if not self._closed:
                self._closed = True
                self._wirings.clear()
                self._conditioning.clear()
                self._loras.clear()
                self.backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_count(name: str, value: object, low: int, high: int, remedy: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OptionInvalid(name, actual=repr(value), allowed=f"{low} to {high}", remedy=remedy)


@dataclass(slots=True)
class _Call:
    """One call's batches: how far it is, and what it took. total: steps of all batches; before: of those painted."""

    total: int
    on_step: OnStep | None
    before: int = 0
    conditioning_cached: bool = True
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class Clock:
    """Adds wall seconds to named stages."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.begun = seconds, time.perf_counter()
        self.last = self.begun

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to this stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def total(self) -> None:
        """The time since the clock was made belongs to `total`."""
        self.seconds["total"] += time.perf_counter() - self.begun
