"""One of our names over a model's scheduler_config → the real diffusers scheduler, or a refusal by name.

Knows which settings no table can follow; not how a table is found.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import diffusers
from diffusers.utils import logging

from engine.errors import SchedulerUnsupported
from export.refused import REFUSED_CLASSES
from export.schedulers import OFFERS, Kind, Offer

LEARNED = "a learned variance is a second output of the model"
REFUSED_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "thresholding": (bool, "dynamic thresholding is not linear in the model's output"),
    "clip_sample": (bool, "clipping the predicted sample is not linear in the model's output"),
    "use_dynamic_shifting": (bool, "its steps depend on the picture's size, and a table only on how many there are"),
    "variance_type": (lambda v: str(v).startswith("learned"), LEARNED),
}
"""Settings, the values of them that are refused, and why."""
NEEDED = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
"""What a model was trained with and its scheduler must know: a class without the setting does as if it had this."""
PACKAGES = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}
OWN = "own"
"""The name of the model's own scheduler where it is none of ours."""


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of one of our names, or `own`, over a model's own scheduler_config.

    Raises SchedulerUnsupported where a setting is not linear, or the class does not know what the model needs.
    """
    offer = offer_of(name, config)
    _check_package(name, offer)
    kind = getattr(diffusers, offer.class_name)
    known = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in {**config, **offer.settings}.items() if key in known}
    _check_settings(name, {**(defaults_of(kind) if name == OWN else {}), **config}, known)
    _check_needs(name, offer, config, known)
    with refusals(name), quiet():
        return kind.from_config(settings)


def offer_of(name: str, config: Mapping[str, Any]) -> Offer:
    """What a name means for a model. Raises SchedulerUnsupported where the model is of another kind."""
    if name == OWN:
        return Offer(class_name=str(config.get("_class_name")), kind=kind_of(config))
    offer = OFFERS[name]
    if offer.kind != (model := kind_of(config)):
        actual = f"a scheduler for models of kind '{offer.kind}': this model's scheduler_config is of kind '{model}'"
        raise unsupported(name, actual, "Choose another scheduler.")
    return offer


def kind_of(config: Mapping[str, Any]) -> Kind:
    """How the model that a scheduler_config belongs to lays out its noise."""
    name = str(config.get("_class_name", ""))
    if "Flow" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    return "edm" if name.startswith("EDM") else "diffusion"


def defaults_of(kind: Any) -> dict[str, Any]:
    """A class's settings where a config says nothing."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def check_class(config: Mapping[str, Any]) -> Any:
    """The scheduler's class that a scheduler_config names. Raises SchedulerUnsupported where diffusers has none such.

    Of those refused for every model None is good enough: what a model needs is known of them.
    """
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.isidentifier() else None
    if name not in REFUSED_CLASSES and not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        reason = f"no scheduler of diffusers {diffusers.__version__}"
        raise unsupported(name, reason, "Name one of diffusers' in scheduler_config.json.")
    return kind


def own_name(config: Mapping[str, Any]) -> str:
    """Our name of the scheduler that a model's scheduler_config describes: the offer with its very settings, or `own`.

    Raises SchedulerUnsupported where the class is none of diffusers' schedulers, or refused for every model.
    """
    class_name = str(config.get("_class_name"))
    if class_name in REFUSED_CLASSES:
        raise unsupported(class_name, REFUSED_CLASSES[class_name], "Choose another scheduler.")
    kind = check_class(config)
    effective = {**defaults_of(kind), **config}
    for name, offer in OFFERS.items():
        same = all(effective.get(key, value) == value for key, value in offer.settings.items())
        if offer.class_name == class_name and same:
            return name
    return OWN


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers logs and warns of settings that it corrects by itself, hundreds of times."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # KDPM2 cumulates a tensor as if it were an array
            yield
    finally:
        logging.set_verbosity(before)


_REFUSALS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)


@contextlib.contextmanager
def refusals(name: str) -> Iterator[None]:
    """What diffusers raises for settings it does not take, as SchedulerUnsupported."""
    try:
        yield
    except (*_REFUSALS, RuntimeError) as error:  # torch's, for values of another shape than it can take
        reason = f"settings that diffusers refuses ({error})"
        raise unsupported(name, reason, "Correct scheduler_config.json.") from error


def unsupported(name: str, actual: str, remedy: str) -> SchedulerUnsupported:
    """The error of a scheduler that has no tables."""
    allowed = "steps that are linear in the sample, the model's outputs and the noise"
    return SchedulerUnsupported(f"scheduler '{name}'", actual=actual, allowed=allowed, remedy=remedy)


def _check_package(name: str, offer: Offer) -> None:
    needed = "scipy" if offer.settings.get("use_beta_sigmas") else PACKAGES.get(offer.class_name)
    if needed and importlib.util.find_spec(needed) is None:
        raise unsupported(name, f"no package '{needed}', which diffusers needs for it", f"Run `pip install {needed}`.")


def _check_settings(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for setting, (refused, reason) in REFUSED_SETTINGS.items():
        if refused(settings.get(setting)) and (setting in known or reason is LEARNED):
            actual = f"{setting}={settings[setting]}: {reason}"
            raise unsupported(name, actual, f"Change {setting} in scheduler_config.json.")


def _check_needs(name: str, offer: Offer, config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for setting, usual in NEEDED.items():
        value = config.get(setting, usual)
        if setting not in known and value != usual and offer.kind == "diffusion":
            actual = f"{offer.class_name}, which does not know the model's {setting}={value}"
            raise unsupported(name, actual, "Choose another scheduler.")
