"""The schedulers we have names for: which diffusers class each is, with which settings, and who else calls it what.

Data only: nothing here is run, and no formula of a scheduler is here. What has no tables is in export/refused.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["diffusion", "edm", "flow"]
"""How a model's noise is laid out over time: by betas, by EDM's sigmas, or along a straight flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One of our names. settings go over the model's scheduler_config; etas: what step() takes, the default first."""

    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    etas: tuple[float, ...] = ()
    kind: Kind = "diffusion"


PLAIN = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)
SIGMAS = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
"""Our suffix of a spacing of sigmas, and the one that web UIs write."""
SPACINGS = ("trailing", "linspace")
LINEAR = {"clip_sample": False, "thresholding": False}
"""Both are defaults of some class, and neither is linear; pipelines of latents leave them off."""


def _multistep(algorithm: str, order: int, solver: str = "midpoint") -> dict[str, Any]:
    return {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}


EULER_A, DPM2_A = "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
ODE, SDE = "dpmsolver++", "sde-dpmsolver++"

SAMPLERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "euler": ("EulerDiscreteScheduler", {}, "class sigmas spacings", "Euler"),
    "euler_ancestral": (EULER_A, {}, "class spacings", "Euler a"),
    "heun": ("HeunDiscreteScheduler", LINEAR, "class sigmas spacings", "Heun"),
    "dpm2": ("KDPM2DiscreteScheduler", {}, "class sigmas spacings", "DPM2"),
    "dpm2_ancestral": (DPM2_A, {}, "class sigmas spacings", "DPM2 a"),
    "lms": ("LMSDiscreteScheduler", {}, "class sigmas spacings", "LMS"),
    "ddim": ("DDIMScheduler", LINEAR, "class eta spacings", "DDIM"),
    "ddim_parallel": ("DDIMParallelScheduler", LINEAR, "class eta", ""),
    "ddpm": ("DDPMScheduler", LINEAR, "class spacings", "DDPM"),
    "ddpm_parallel": ("DDPMParallelScheduler", LINEAR, "class", ""),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, "class spacings", "PLMS"),
    "deis": ("DEISMultistepScheduler", {}, "class sigmas spacings", "DEIS"),
    "unipc": ("UniPCMultistepScheduler", {}, "class sigmas spacings", "UniPC"),
    "dpmpp_2m": (MULTI, _multistep(ODE, 2), "class sigmas lu spacings", "DPM++ 2M"),
    "dpmpp_3m": (MULTI, _multistep(ODE, 3), "sigmas", "DPM++ 3M"),
    "dpmpp_2m_sde": (MULTI, _multistep(SDE, 2), "sigmas", "DPM++ 2M SDE"),
    "dpmpp_2m_sde_heun": (MULTI, _multistep(SDE, 2, "heun"), "sigmas", "DPM++ 2M SDE Heun"),
    "dpmpp_3m_sde": (MULTI, _multistep(SDE, 3), "sigmas", "DPM++ 3M SDE"),
    "dpm_2m": (MULTI, _multistep("dpmsolver", 2), "", ""),
    "dpmpp_2s": (SINGLE, _multistep(ODE, 2), "class sigmas", "DPM++ 2S"),
    "dpmpp_2s_sde": (SINGLE, _multistep(SDE, 2), "sigmas", "DPM++ 2S SDE"),
    "dpmpp_3s": (SINGLE, _multistep(ODE, 3), "", "DPM++ 3S"),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}, "class sigmas spacings", "DPM++ SDE"),
    "sa_solver": ("SASolverScheduler", {}, "class", ""),
    "lcm": ("LCMScheduler", LINEAR, "class", "LCM"),
    "tcd": ("TCDScheduler", LINEAR, "class gamma", "TCD"),
    "edm_euler": ("EDMEulerScheduler", {}, "class edm", ""),
    "edm_dpmpp_2m": ("EDMDPMSolverMultistepScheduler", _multistep(ODE, 2), "class edm", ""),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}, "class flow", ""),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}, "class flow", ""),
    "flow_lcm": ("FlowMatchLCMScheduler", {}, "class flow", ""),
}  # fmt: skip
"""Our name: the class, its settings, traits, and what AUTOMATIC1111's web UI calls it.

Traits. class: diffusers' class name means this one. sigmas, spacings, lu: variants there are. eta, gamma: what step()
takes. edm, flow: made for models of that kind alone.
"""

ETAS = {"eta": (0.0, 1.0), "gamma": (0.0, 0.3, 1.0)}
"""TCD calls it gamma. The first is what diffusers' pipelines pass; 0.3 is what TCD's authors propose."""


def _offers() -> Iterator[tuple[str, Offer]]:
    """Every sampler, each with its variants behind it."""
    for name, (class_name, settings, words, shown) in SAMPLERS.items():
        traits = words.split()
        kind: Kind = "edm" if "edm" in traits else "flow" if "flow" in traits else "diffusion"
        aliases = (*((class_name,) if "class" in traits else ()), *((shown,) if shown else ()))
        etas = next((ETAS[trait] for trait in traits if trait in ETAS), ())
        plain = PLAIN if kind == "diffusion" else {}
        offer = Offer(class_name=class_name, settings={**settings, **plain}, aliases=aliases, etas=etas, kind=kind)
        yield name, offer
        yield from _variants(name, offer, traits, shown)


def _variants(name: str, offer: Offer, traits: list[str], shown: str) -> Iterator[tuple[str, Offer]]:
    for suffix, word in SIGMAS.items() if "sigmas" in traits else ():
        settings = {**offer.settings, f"use_{suffix}_sigmas": True}
        yield f"{name}_{suffix}", replace(offer, settings=settings, aliases=(f"{shown} {word}",))
    if "lu" in traits:
        yield f"{name}_lu", replace(offer, settings={**offer.settings, "use_lu_lambdas": True}, aliases=())
    for spacing in SPACINGS if "spacings" in traits else ():
        settings = {**offer.settings, "timestep_spacing": spacing}
        yield f"{name}_{spacing}", replace(offer, settings=settings, aliases=())


OFFERS: dict[str, Offer] = dict(_offers())
