"""docs/schedulers.md: every scheduler class of diffusers and every name of ours, exported or refused with the reason.

    python -m export.scheduler_page    writes the page

The ranges are those of a Stable Diffusion 1.5 config, or of a plain one for models of another kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import schedulers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.errors import SchedulerUnsupported
from export.refused import REFUSED_CLASSES, REFUSED_NAMES
from export.scheduler import make_scheduler, quiet
from export.schedulers import OFFERS, Kind, Offer
from export.solver import MAX_STEPS, Subject

PAGE = Path(__file__).parents[1] / "docs" / "schedulers.md"
CONFIGS: dict[Kind, Mapping[str, Any]] = {
    "diffusion": {
        "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading", "clip_sample": False,
    },
    "edm": {"_class_name": "EDMEulerScheduler"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
}  # fmt: skip
HEAD = """# Schedulers

Written by `python -m export.scheduler_page` (`make schedulers`) for diffusers {version}; a test compares it.
Case does not matter in a name. A model's own settings (prediction type, spacing, betas) hold for every scheduler; a
class that does not know one of them is refused at export, by name. `own` is the model's scheduler where it is none of
these.

## Exported

| name | class | other names | steps | eta | models |
|---|---|---|---|---|---|
"""
MIDDLE = """
## Refused

| name | why |
|---|---|
"""
KINDS = {"diffusion": "by betas", "edm": "EDM", "flow": "flow matching"}


def scheduler_classes() -> list[str]:
    """The names of every scheduler class that diffusers exports, those whose packages are missing included."""
    named = {name for module in (diffusers, schedulers) for name in dir(module) if name.endswith("Scheduler")}
    return sorted(name for name in named if _is_scheduler(getattr(diffusers, name, getattr(schedulers, name, None))))


def page() -> str:
    """The whole page."""
    exported, refused = list[str](), dict[str, str]()
    with quiet():
        for name, offer in OFFERS.items():
            try:
                exported.append(_row(name, offer))
            except SchedulerUnsupported as error:  # noqa: PERF203 - a hundred names
                refused[name] = error.actual
    refused |= REFUSED_NAMES
    rows = "".join(f"| {name} | {reason} |\n" for name, reason in refused.items())
    return HEAD.format(version=diffusers.__version__) + "".join(exported) + MIDDLE + rows


def _row(name: str, offer: Offer) -> str:
    subject = Subject(name, make_scheduler(name, CONFIGS[offer.kind]))
    found = [
        steps for steps in range(1, MAX_STEPS + 1) if steps in {1, 2, 3, 4, 50, 51, MAX_STEPS} and _has(subject, steps)
    ]
    if not found:
        subject.table(MAX_STEPS)
    etas = ", ".join(f"{eta:g}" for eta in offer.etas) or "–"
    cells = name, offer.class_name, ", ".join(offer.aliases), f"{found[0]} to {found[-1]}", etas, KINDS[offer.kind]
    return f"| {' | '.join(cells)} |\n"


def _has(subject: Subject, steps: int) -> bool:
    try:
        subject.table(steps)
    except SchedulerUnsupported:
        return False
    return True


def _is_scheduler(kind: Any) -> bool:
    """A class of diffusers', or what stands in its place where a package is missing."""
    return (
        inspect.isclass(kind)
        and kind is not SchedulerMixin
        and ("Dummy" in type(kind).__name__ or issubclass(kind, SchedulerMixin))
    )


def uncovered() -> Iterator[str]:
    """Classes that are neither offered nor refused: there are none."""
    known = {offer.class_name for offer in OFFERS.values()} | set(REFUSED_CLASSES)
    yield from (name for name in scheduler_classes() if name not in known)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
