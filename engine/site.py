"""Where plans are built: what a user's target comes to with the TensorRT and the GPU that are here."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda import Cuda
from engine.dialect import Dialect, load_dialect
from engine.errors import BackendUnavailable, OptionInvalid
from engine.machine import Machine, free_gpu_memory, machine_of
from engine.target import Target


@dataclass(frozen=True, slots=True)
class Site:
    """target: with its version. capabilities: all that its plans are built for.

    machine: that plans are timed on; None where none is needed. gpu: the machine as far as its GPU is there, needed or
    not. gpu_memory_bytes: what was free; None where no plan is timed. installed: the TensorRT that is here; None where
    plans are only looked at.
    """

    target: Target
    capabilities: tuple[str, ...]
    machine: Machine | None = None
    gpu: Machine | None = None
    gpu_memory_bytes: int | None = None
    installed: Dialect | None = None

    @property
    def dialect(self) -> Dialect:
        """Of the TensorRT that builds here."""
        assert self.installed is not None, "nothing is built where no TensorRT is"
        return self.installed

    @property
    def runs_here(self) -> bool:
        """Whether the GPU that is here is one of those that plans are built for."""
        return self.gpu is not None and self.gpu.compute_capability in self.capabilities

    @property
    def elsewhere(self) -> str:
        """Why plans cannot run here, in words."""
        built_for = f"built for {', '.join(self.capabilities)}"
        if self.gpu is None:
            return f"{built_for} without a GPU"
        return f"{built_for}, and the GPU here has compute capability {self.gpu.compute_capability}"


def site_of(asked: Target) -> Site:
    """The site of what was asked for. Raises BackendUnavailable, or OptionInvalid for an unknown compute capability."""
    dialect = load_dialect(asked.flavour)
    flavour, version = dialect.flavour, dialect.version
    if not flavour.portable:
        cuda = Cuda(extra=flavour.extra)
        machine = machine_of(cuda)
        capabilities = (machine.compute_capability,)
        target = Target(flavour=flavour.name, version=version, capabilities=capabilities)
        return Site(target, capabilities, machine, machine, free_gpu_memory(cuda), dialect)
    known = dialect.compute_capabilities()
    for capability in asked.capabilities:
        if capability not in known:
            raise OptionInvalid(
                f"target '{asked}'", actual=f"compute capability {capability}", allowed=", ".join(known),
                remedy=f"These are what {flavour.title} {version} builds for.",
            )  # fmt: skip
    restricted = asked.capabilities if set(asked.capabilities) < set(known) else ()
    target = Target(flavour=flavour.name, version=version, capabilities=restricted)
    return Site(target, restricted or known, gpu=_gpu(flavour.extra), installed=dialect)


def _gpu(extra: str) -> Machine | None:
    """The machine with its GPU, where one can be used: not to build on, but for the parity gate."""
    try:
        return machine_of(Cuda(extra=extra))
    except BackendUnavailable:
        return None
