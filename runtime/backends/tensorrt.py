"""TensorRT: plans on an NVIDIA GPU, on one stream, the loop captured. TensorRT-RTX is the same with another dialect.

Knows no graph by name; what a plan is and how TensorRT is spoken to is engine/'s.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from engine.arena import Arena
from engine.binding import Binding, Dims, Graph, PlanPrecision, variant_of
from engine.bundle import Bundle
from engine.capture import Captures
from engine.catalog import Catalog, PlanSet, find_plans
from engine.context import Engines
from engine.cuda import Cuda, run_all
from engine.device import Device, DeviceTensor, Stamp
from engine.dialect import Dialect, load_dialect
from engine.errors import BackendUnavailable, ExecutionFailed, PlanError, ShapeOutsideProfile, ZturboError
from engine.machine import Machine, machine_of
from engine.one_by_one import bound_graph
from engine.plan import build_remedy
from engine.profiles import dims_text, size_text
from engine.target import Target
from runtime.backends.base import BackendOptions, Buffer, Launch


class TensorRTBackend:
    """The engines of a bundle on one GPU. captures: of what it captured, and why not.

    A set's engines are loaded by `load_nearest` or when a shape needs them, and stay until close(): each size that lies
    in another set adds that set's weights to the GPU's memory. Those of graphs that a picture can be painted without
    are loaded apart, when one is first bound. All share one scratch.
    """

    def __init__(
        self, folder: Path, dialect: Dialect, gpu: Device, machine: Machine, catalog: Catalog, *, capture: bool = True
    ) -> None:
        self.name, self.device, self.precision = dialect.flavour.name, machine.gpu, catalog.precision
        self._folder, self._dialect, self._gpu, self._catalog = folder, dialect, gpu, catalog
        self._engines: dict[str, Engines] = {}
        self._arena = Arena(gpu, catalog.scratch_bytes)
        self.captures = Captures(gpu, self._arena, asked=capture)
        self._closed = False

    def allocate(self, binding: Binding, dims: Dims) -> DeviceTensor:
        """Device memory with no particular contents, freed with the tensor."""
        return self._gpu.tensor(binding.resolve(dims), binding.dtype)

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """A launch with execution contexts of its own. Raises ShapeOutsideProfile, PlanError or ExecutionFailed."""
        found = self._catalog.covering(dims, graph.name)
        if found is None:
            raise self._outside(dims)
        plans, profile = found
        names = {binding.name for binding in graph.bindings}
        tensors = {name: cast("DeviceTensor", buffer) for name, buffer in buffers.items() if name in names}
        engines = self._loaded(plans, graph.name if graph.optional else None)
        return bound_graph(engines, self._gpu, graph, tensors, profile)

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """One launch of several: plain once, then captured and replayed; plain for good where that fails."""
        return self.captures.of(launches)

    def load_nearest(self, height: int, width: int) -> None:
        """Load the engines for a size in pixels, or those nearest to it. Raises PlanError or ExecutionFailed."""
        self._loaded(self._catalog.nearest(height, width))

    def row_counts(self, height: int, width: int, tokens: int) -> list[int]:
        """Those of the profiles that cover size and tokens; where none does, `bind` says which there are."""
        return self._catalog.row_counts(height, width, tokens)

    def mark(self) -> Callable[[], None]:
        """A CUDA event behind all that was launched."""
        return self._gpu.mark()

    def stamp(self) -> Stamp:
        """The moment at which the GPU is done with all that was launched."""
        return self._gpu.stamp()

    def elapsed_ms(self, begin: Stamp, end: Stamp) -> float:
        """Milliseconds between two stamps, once the GPU got to the second."""
        return self._gpu.elapsed_ms(begin, end)

    def close(self) -> None:
        """Wait for what was launched, then free captures, engines, memory, events and the stream; a second call does
        nothing.

        Raises the first ExecutionFailed, once all is freed.
        """
        if self._closed:
            return
        self._closed = True
        engines = list(self._engines.values())
        self._engines.clear()
        run_all([self.captures.close, *(one.close for one in engines), self._arena.close, self._gpu.close])

    def _loaded(self, plans: PlanSet, graph: str | None = None) -> Engines:
        """The engines of a set, or of one of its graphs that are loaded apart. Raises PlanError or ExecutionFailed."""
        key = plans.name if graph is None else f"{plans.name}, {graph}"
        if key not in self._engines:
            self._engines[key] = Engines(self._dialect, self._gpu, plans.read(graph), self._arena)
        return self._engines[key]

    def _outside(self, dims: Dims) -> ShapeOutsideProfile:
        asked = ", ".join(f"{name} {dims[name]}" for name in ("rows", "samples", "width", "height", "tokens"))
        profile = dims_text(dims, self._catalog.usual)
        texts = dict.fromkeys(one.text for one, _, _ in self._catalog.profiles)
        target = str(self._catalog.sets[0].target)
        return ShapeOutsideProfile(
            f"backend {self.name}", actual=asked, allowed="the profiles " + ", ".join(texts),
            remedy=build_remedy(self._folder, target, profile, self.precision),
        )  # fmt: skip


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """The backend of TensorRT. options.device: `cuda` or `cuda:N`. Raises BackendUnavailable."""
    return open_flavour("tensorrt", folder, bundle, options)


def open_flavour(flavour: str, folder: Path, bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """The backend of one flavour: its module, a GPU it runs on, and plans for both. Raises BackendUnavailable.

    It proves itself: the engines nearest to the bundle's default size are loaded here, others when they are needed.
    """
    index = _device_index(flavour, options.device)
    dialect = load_dialect(flavour)
    cuda = Cuda(index, extra=dialect.flavour.extra)
    machine = machine_of(cuda)
    _check_capability(dialect, machine)
    catalog = _catalog(folder, bundle, options, dialect, machine)
    if not catalog.sets:
        raise _no_plans(dialect, folder, bundle, catalog, machine)
    try:
        backend = TensorRTBackend(folder, dialect, Device(cuda), machine, catalog, capture=options.capture)
        _prove(backend, bundle)
    except (ExecutionFailed, PlanError) as error:
        raise _because(error, f"backend {flavour}, bundle '{bundle.name}'") from error
    _warn(flavour, catalog, machine)
    return backend


def _prove(backend: TensorRTBackend, bundle: Bundle) -> None:
    """Load what a default request needs; what fails leaves nothing on the GPU."""
    try:
        backend.load_nearest(bundle.defaults.height, bundle.defaults.width)
    except BaseException:
        with contextlib.suppress(ExecutionFailed):  # the first failure is the one to tell
            backend.close()
        raise


def _because(error: ZturboError, subject: str, more: str = "") -> BackendUnavailable:
    """That a backend cannot run, for an error's reason and with its remedy."""
    actual = f"{more}{error.subject}: {error.actual}"
    return BackendUnavailable(subject, actual=actual, allowed=error.allowed, remedy=error.remedy)


def _device_index(flavour: str, device: str | None) -> int:
    match = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", "cuda" if device is None else device)
    if match is None:
        raise BackendUnavailable(
            f"backend {flavour}", actual=f"device '{device}'", allowed="cuda, cuda:N", remedy="Leave the device out."
        )
    return int(match[1] or 0)


def _catalog(folder: Path, bundle: Bundle, options: BackendOptions, dialect: Dialect, machine: Machine) -> Catalog:
    """The plans of the precision that was asked for; else of the first of fp16, bf16, fp32 that there are plans of."""
    order: tuple[PlanPrecision, ...] = ("fp16", "bf16", "fp32")
    possible = [one for one in order if variant_of(one) in bundle.variants]
    asked = possible if options.precision is None else [options.precision]
    catalogs = [find_plans(folder, bundle, precision, dialect, machine) for precision in asked]
    return next((catalog for catalog in catalogs if catalog.sets), catalogs[0])


def _check_capability(dialect: Dialect, machine: Machine) -> None:
    known = dialect.compute_capabilities()
    if known and machine.compute_capability not in known:
        raise BackendUnavailable(
            f"backend {dialect.flavour.name}", allowed=f"one of {', '.join(known)}",
            actual=f"{machine.gpu} of compute capability {machine.compute_capability}",
            remedy="Use the target `tensorrt` on this GPU.",
        )  # fmt: skip


def _no_plans(dialect: Dialect, folder: Path, bundle: Bundle, catalog: Catalog, machine: Machine) -> BackendUnavailable:
    flavour = dialect.flavour
    subject = f"backend {flavour.name}, bundle '{bundle.name}'"
    if catalog.problems:
        first, others = catalog.problems[0], len(catalog.problems) - 1
        return _because(first, subject, f"no plan that may run here{f' (and {others} more)' if others else ''}: ")
    profile = f"{size_text(bundle.defaults.width, bundle.defaults.height)}@2"
    here = Target(flavour=flavour.name, version=dialect.version, capabilities=(machine.compute_capability,))
    return BackendUnavailable(
        subject, actual=f"plans for {', '.join(catalog.others)} only" if catalog.others else "no plans",
        allowed=f"plans for {here.folder}", remedy=build_remedy(folder, flavour.name, profile, catalog.precision),
    )  # fmt: skip


def _warn(flavour: str, catalog: Catalog, machine: Machine) -> None:
    """Say once what was found but is not used, and where this machine differs from the one that built."""
    lines = [f"left out {problem}" for problem in catalog.problems] + catalog.soft_differences(machine)
    if lines:
        warnings.warn(f"backend {flavour}: {'; '.join(lines)}", RuntimeWarning, stacklevel=2)
