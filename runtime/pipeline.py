"""From a request to pictures: the readable spine. Names no model family, no scheduler and no vendor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.binding import Dims, Precision
from engine.bundle import Bundle, load_bundle
from engine.errors import OptionInvalid
from runtime.backends import Verdict, open_backend
from runtime.backends.base import Backend, BackendOptions
from runtime.batch import Batch, Sample, split
from runtime.denoise import Step, denoise
from runtime.images import Result
from runtime.memory import Wiring, Wirings
from runtime.request import Request
from runtime.resolve import Resolved, resolve
from runtime.tables import Tables
from runtime.text import Tokenizer

Pixels = NDArray[np.uint8]
OnStep = Callable[[Step], None]
STAGES = ("conditioning", "loop", "decode", "total")
MAX_THREADS = 1024


class Pipeline:
    """A bundle on a backend. One thread generates at a time; others wait. Use `with`, or call close()."""

    def __init__(self, folder: Path, bundle: Bundle, backend: Backend, verdicts: Sequence[Verdict] = ()) -> None:
        self.folder, self.bundle, self.backend, self.verdicts = folder, bundle, backend, tuple(verdicts)
        self._tokenizer, self._tables = Tokenizer(folder, bundle), Tables(folder, bundle)
        self._wirings = Wirings(self._wire)
        self._lock, self._closed = threading.Lock(), False
        self._painter: int | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        backend: str = "auto",
        *,
        precision: Precision | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> Pipeline:
        """Open a bundle. backend: `auto` takes the first that can run here; `verdicts` says why not the ones before.

        precision: `fp32` or `fp16`; device: the backend's word for it; threads: CPU threads inside a graph.
        Raises BundleError, OptionInvalid or BackendUnavailable.
        """
        folder = Path(folder)
        bundle = load_bundle(folder)
        if precision is not None:
            bundle.graphs(precision)
        _check_threads(threads)
        options = BackendOptions(precision=precision, device=device, threads=threads)
        opened, verdicts = open_backend(backend, folder, bundle, options)
        try:
            return cls(folder, bundle, opened, verdicts)
        except BaseException:
            opened.close()
            raise

    def generate(self, request: Request, on_step: OnStep | None = None) -> Result:
        """Paint one request. on_step is called once a step is launched; what it raises ends the request.

        Raises RequestInvalid, ShapeOutsideProfile or ExecutionFailed.
        """
        return self.generate_many([request], on_step)[0]

    def generate_many(self, requests: Sequence[Request], on_step: OnStep | None = None) -> list[Result]:
        """Paint requests of one size together; guided and unguided, schedulers and step counts may differ.

        Each picture is the one its request gives alone, up to rounding. Raises as generate does.
        """
        resolved = resolve(requests, self.bundle, self._tables)
        with self._turn():
            self._check_open()
            seconds = dict.fromkeys(STAGES, 0.0)
            batches = self._batches([sample for one in resolved for sample in one.samples], resolved[0])
            before, total, pictures = 0, sum(batch.evaluations for batch in batches), []
            for batch in batches:
                pictures += list(self._paint(batch, seconds, on_step, before, total))
                before += batch.evaluations
        return self._results(resolved, pictures, seconds)

    def _paint(
        self, batch: Batch, seconds: dict[str, float], on_step: OnStep | None, before: int, total: int
    ) -> Pixels:
        """One batch from prompts to pixels: (samples, H, W, 3) uint8. Adds each stage's wall time to seconds."""
        clock = Clock(seconds)
        wiring = self._wirings.get(batch.dims)
        wiring.write(batch.host_inputs(self._tables, self._tokenizer.encode(batch.texts())))
        wiring.launch("once")
        self.backend.mark()()
        clock.lap("conditioning")
        with closing(denoise(self.backend, wiring, batch.evaluations, before, total)) as steps:
            for step in steps:
                if on_step is not None:
                    on_step(step)
        clock.lap("loop")
        wiring.launch("final")
        images = wiring.read("images")
        clock.lap("decode")
        clock.total()
        return images.astype(np.uint8, copy=False)

    def _batches(self, samples: Sequence[Sample], first: Resolved) -> list[Batch]:
        """The samples in batches, each of which fits: where one does not, none is painted."""
        shape = first.latent_shape, first.height, first.width, self._tokenizer.max_tokens
        groups = split(samples, self.backend.max_rows(first.height, first.width))
        batches = [Batch(group, *shape) for group in groups]
        for batch in batches:
            self._wirings.get(batch.dims)
        return batches

    def _wire(self, dims: Dims) -> Wiring:
        return Wiring(self.backend, self.bundle.graphs(self.backend.precision), dims)

    def _results(
        self, resolved: Sequence[Resolved], pictures: Sequence[Pixels], seconds: dict[str, float]
    ) -> list[Result]:
        results, start = [], 0
        for one in resolved:
            count = len(one.samples)
            arrays = np.stack(pictures[start : start + count])
            results.append(Result(arrays, dict(seconds), {**one.metadata(self._tokenizer), **self._made_by()}))
            start += count
        return results

    def _made_by(self) -> dict[str, Any]:
        names = {"backend": self.backend.name, "device": self.backend.device, "precision": self.backend.precision}
        return {"bundle": self.bundle.name, "bundle_sha256": self.bundle.sha256, **names}

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
                self.backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_threads(threads: int | None) -> None:
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
        raise OptionInvalid(
            "threads", actual=repr(threads), allowed=f"1 to {MAX_THREADS}", remedy="Leave it out for all cores."
        )


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
