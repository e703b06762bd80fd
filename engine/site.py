"""Where plans are built: what a user's target comes to with the TensorRT and the GPU that are here."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda import Cuda
from engine.dialect import load_dialect
from engine.errors import OptionInvalid
from engine.machine import Machine, machine_of
from engine.target import Target


@dataclass(frozen=True, slots=True)
class Site:
    """target: with its version. capabilities: all that its plans are built for. machine: None where none is needed."""

    target: Target
    capabilities: tuple[str, ...]
    machine: Machine | None


def site_of(asked: Target) -> Site:
    """The site of what was asked for. Raises BackendUnavailable, or OptionInvalid for an unknown compute capability."""
    dialect = load_dialect(asked.flavour)
    flavour, version = dialect.flavour, dialect.version
    if not flavour.portable:
        machine = machine_of(Cuda(extra=flavour.extra))
        capabilities = (machine.compute_capability,)
        return Site(Target(flavour=flavour.name, version=version, capabilities=capabilities), capabilities, machine)
    known = dialect.compute_capabilities()
    for capability in asked.capabilities:
        if capability not in known:
            raise OptionInvalid(
                f"target '{asked}'", actual=f"compute capability {capability}", allowed=", ".join(known),
                remedy=f"These are what {flavour.title} {version} builds for.",
            )  # fmt: skip
    restricted = asked.capabilities if set(asked.capabilities) < set(known) else ()
    return Site(Target(flavour=flavour.name, version=version, capabilities=restricted), restricted or known, None)
