"""TensorRT: plans on an NVIDIA GPU, plain launches on one stream. TensorRT-RTX is the same with another dialect.

Knows no graph by name; what a plan is and how TensorRT is spoken to is engine/'s.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from engine.binding import Binding, Dims, Graph, Precision
from engine.bundle import Bundle
from engine.catalog import Catalog, PlanSet, find_plans
from engine.context import Engines
from engine.cuda import Cuda
from engine.device import Device, DeviceTensor
from engine.dialect import Dialect, load_dialect
from engine.errors import BackendUnavailable, ShapeOutsideProfile
from engine.machine import Machine, machine_of
from engine.plan import build_remedy
from engine.profiles import size_text
from runtime.backends.base import BackendOptions, Buffer, Launch


class TensorRTBackend:
    """The engines of a bundle on one GPU. A profile's engines are loaded when a shape first needs them."""

    def __init__(self, folder: Path, dialect: Dialect, gpu: Device, machine: Machine, catalog: Catalog) -> None:
        self.name, self.device, self.precision = dialect.flavour.name, machine.gpu, catalog.precision
        self._folder, self._dialect, self._gpu, self._catalog = folder, dialect, gpu, catalog
        self._engines: dict[str, Engines] = {}

    def allocate(self, binding: Binding, dims: Dims) -> DeviceTensor:
        """Device memory with no particular contents, freed with the tensor."""
        return self._gpu.tensor(binding.resolve(dims), binding.dtype)

    def bind(self, graph: Graph, buffers: Mapping[str, Buffer], dims: Dims) -> Launch:
        """A launch with an execution context of its own. Raises ShapeOutsideProfile, PlanError or ExecutionFailed."""
        plans = self._catalog.covering(dims)
        if plans is None:
            raise self._outside(dims)
        names = {binding.name for binding in graph.bindings}
        tensors = {name: cast("DeviceTensor", buffer) for name, buffer in buffers.items() if name in names}
        return self._load(plans).bind(graph.name, tensors)

    def max_rows(self, height: int, width: int) -> int:
        """Those of the widest profile that covers the size; where none does, `bind` says which there are."""
        return self._catalog.max_rows(height, width)

    def mark(self) -> Callable[[], None]:
        """A CUDA event behind all that was launched."""
        return self._gpu.mark()

    def close(self) -> None:
        """Free engines, memory, events and the stream; a second call does nothing."""
        for engines in self._engines.values():
            engines.close()
        self._engines.clear()
        self._gpu.close()

    def _load(self, plans: PlanSet) -> Engines:
        profile = plans.profile.text
        if profile not in self._engines:
            self._engines[profile] = Engines(self._dialect, self._gpu, plans.read())
        return self._engines[profile]

    def _outside(self, dims: Dims) -> ShapeOutsideProfile:
        asked = ", ".join(f"{name} {dims[name]}" for name in ("rows", "samples", "width", "height"))
        profile = f"{size_text(dims['width'], dims['height'])}@{dims['rows']}"
        return ShapeOutsideProfile(
            f"backend {self.name}", actual=asked,
            allowed="the profiles " + ", ".join(plans.profile.text for plans in self._catalog.sets),
            remedy=build_remedy(self._folder, str(self._catalog.sets[0].target), profile),
        )  # fmt: skip


def open_backend(folder: Path, bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """The backend of TensorRT. options.device: `cuda` or `cuda:N`. Raises BackendUnavailable."""
    return open_flavour("tensorrt", folder, bundle, options)


def open_flavour(flavour: str, folder: Path, bundle: Bundle, options: BackendOptions) -> TensorRTBackend:
    """The backend of one flavour: its module, a GPU it runs on, and plans for both. Raises BackendUnavailable."""
    index = _device_index(flavour, options.device)
    dialect = load_dialect(flavour)
    cuda = Cuda(index)
    machine = machine_of(cuda)
    _check_capability(dialect, machine)
    catalog = find_plans(folder, bundle, _precision(bundle, options), dialect, machine)
    if not catalog.sets:
        raise _no_plans(flavour, folder, bundle, catalog)
    _warn(flavour, catalog, machine)
    return TensorRTBackend(folder, dialect, Device(cuda), machine, catalog)


def _device_index(flavour: str, device: str | None) -> int:
    match = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", device or "cuda")
    if match is None:
        raise BackendUnavailable(
            f"backend {flavour}", actual=f"device '{device}'", allowed="cuda, cuda:N", remedy="Leave the device out."
        )
    return int(match[1] or 0)


def _precision(bundle: Bundle, options: BackendOptions) -> Precision:
    """What was asked, else fp16, else what the bundle has."""
    if options.precision is not None:
        return options.precision
    return "fp16" if "fp16" in bundle.variants else next(iter(bundle.variants))


def _check_capability(dialect: Dialect, machine: Machine) -> None:
    known = dialect.compute_capabilities()
    if known and machine.compute_capability not in known:
        raise BackendUnavailable(
            f"backend {dialect.flavour.name}", allowed=f"one of {', '.join(known)}",
            actual=f"{machine.gpu} of compute capability {machine.compute_capability}",
            remedy="Use the target `tensorrt` on this GPU.",
        )  # fmt: skip


def _no_plans(flavour: str, folder: Path, bundle: Bundle, catalog: Catalog) -> BackendUnavailable:
    subject = f"backend {flavour}, bundle '{bundle.name}'"
    if catalog.problems:
        first = catalog.problems[0]
        more = f" (and {len(catalog.problems) - 1} more)" if len(catalog.problems) > 1 else ""
        actual = f"no plan that may run here{more}: {first.subject}: {first.actual}"
        return BackendUnavailable(subject, actual=actual, allowed=first.allowed, remedy=first.remedy)
    profile = f"{size_text(bundle.defaults.width, bundle.defaults.height)}@2"
    remedy = build_remedy(folder, flavour, profile)
    return BackendUnavailable(subject, actual="no plans", allowed="plans for one profile or more", remedy=remedy)


def _warn(flavour: str, catalog: Catalog, machine: Machine) -> None:
    """Say once what was found but is not used, and where this machine differs from the one that built."""
    lines = [f"left out {problem}" for problem in catalog.problems] + catalog.soft_differences(machine)
    if lines:
        warnings.warn(f"backend {flavour}: {'; '.join(lines)}", RuntimeWarning, stacklevel=2)
