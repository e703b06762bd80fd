"""The schedulers that have no tables for any model, each with the reason; data only.

What a model's own settings rule out is in export/scheduler.py; what does not fit a row is found by probing.
"""

from __future__ import annotations

OTHER = "made for another model's parametrisation, which no Stable Diffusion config can drive: "
REFUSED_CLASSES: dict[str, str] = {
    "AmusedScheduler": "discrete: it unmasks tokens instead of removing noise",
    "BlockRefinementScheduler": "discrete: it unmasks blocks of tokens instead of removing noise",
    "CMStochasticIterativeScheduler": f"{OTHER}consistency models over their own sigmas",
    "CogVideoXDDIMScheduler": f"{OTHER}CogVideoX, whose noise levels it shifts",
    "CogVideoXDPMScheduler": f"{OTHER}CogVideoX; its step() also wants the last prediction from the caller",
    "ConsistencyDecoderScheduler": f"{OTHER}the consistency decoder of an image's pixels",
    "CosineDPMSolverMultistepScheduler": f"{OTHER}Stable Audio, over its own sigmas (and it needs torchsde)",
    "DDIMInverseScheduler": "inverse: it adds noise to an image instead of removing it",
    "DDPMWuerstchenScheduler": f"{OTHER}Würstchen, over a continuous time of its own",
    "DPMSolverMultistepInverseScheduler": "inverse: it adds noise to an image instead of removing it",
    "DiscreteDDIMScheduler": "discrete: its states are tokens",
    "EntropyBoundScheduler": "discrete: it accepts tokens by their entropy",
    "FlowMapEulerDiscreteScheduler": f"{OTHER}flow maps, which take two timesteps",
    "HeliosDMDScheduler": f"{OTHER}Helios video, in stages of several sizes",
    "HeliosScheduler": f"{OTHER}Helios video, in stages of several sizes",
    "IPNDMScheduler": f"{OTHER}its timesteps and noise levels are its own, whatever the model's betas are",
    "KarrasVeScheduler": f"{OTHER}variance-exploding models; its step() wants sigmas and a corrector's call",
    "LTXEulerAncestralRFScheduler": f"{OTHER}LTX video, a flow whose sigmas its pipeline sets",
    "MiniMaxH3Scheduler": f"{OTHER}MiniMax H3, a flow of its own",
    "PiflowScheduler": f"{OTHER}policy flows: its step() runs a policy that the model returns",
    "RFD4ProteinaScheduler": f"{OTHER}protein structures",
    "RePaintScheduler": "it also wants the image and the mask in each step, and goes back up in noise",
    "SCMScheduler": f"{OTHER}SANA-Sprint's trigonometric flow",
    "ScoreSdeVeScheduler": f"{OTHER}score models; its corrector divides by norms, which is not linear",
    "ScoreSdeVpScheduler": f"{OTHER}score models; it has no step() but a prediction of its own",
    "UnCLIPScheduler": f"{OTHER}unCLIP, with a learned variance",
    "VQDiffusionScheduler": "discrete: its states are classes of a codebook",
}
"""diffusers' classes."""

REFUSED_NAMES: dict[str, str] = {
    "Restart": "it goes back up in noise between its steps, and diffusers has no such scheduler",
    "DPM fast": "diffusers has no such scheduler",
    "DPM adaptive": "it chooses its steps by a measured error, which is not linear; diffusers has none such",
    "DPM++ 2S a": "diffusers has no ancestral one; near it are dpmpp_2s (no noise) and dpmpp_2s_sde",
    "DPM++ 2S a Karras": "diffusers has no ancestral one; near it are dpmpp_2s_karras and dpmpp_2s_sde_karras",
    "DDIM CFG++": "it changes how guidance is mixed, which is not the scheduler's; diffusers has no such scheduler",
    **REFUSED_CLASSES,
}
"""And what web UIs call theirs."""
