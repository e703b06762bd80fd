"""Every error that zturbo raises on purpose, as one tree.

    ZturboError
    ├── InvalidInput            what a caller passed is wrong (also a ValueError); the CLI exits with 2
    │   ├── RequestInvalid      a field of a Request
    │   ├── ProfileInvalid      a profile's text
    │   ├── OptionInvalid       an option of a command or of load(), export(), build()
    │   ├── LoraInvalid         a LoRA file: damaged, of a kind that is not supported, or for another model
    │   └── ConfigInvalid       a config file, or a value in one
    ├── SourceError             the model to export: missing, unreadable, not supported
    │   └── SchedulerUnsupported
    ├── ExportMismatch          an exported graph does not compute what its module computes
    ├── BundleError
    │   ├── BundleMissing
    │   ├── BundleVersion       written by another version of the schema
    │   ├── BundleInvalid       bundle.json is not what export wrote
    │   └── BundleDamaged       a file's size or hash differs from bundle.json
    ├── PlanError
    │   ├── PlanMissing
    │   ├── PlanInvalid         plan.json is not what build wrote
    │   ├── PlanDamaged         the plan's bytes differ from plan.json
    │   └── PlanMismatch        made for another bundle, graph, profile, precision, TensorRT or GPU
    ├── ShapeOutsideProfile     a request fits no profile there is
    ├── BuildFailed
    ├── BackendUnavailable      a backend cannot run on this machine, or with this bundle
    ├── ExecutionFailed         a vendor's runtime refused or failed a call
    ├── ExtraMissing            a Python module is not installed; the message names the extra that has it
    └── OutputError             a result cannot be written where it was asked for

A message has four parts: the subject, what it was, what is allowed, and what mends it.
"""

from __future__ import annotations


class ZturboError(Exception):
    """Base of every error raised on purpose; `str()` is the whole message."""

    def __init__(self, subject: str, *, actual: str, allowed: str, remedy: str) -> None:
        self.subject, self.actual, self.allowed, self.remedy = subject, actual, allowed, remedy
        super().__init__(f"{subject}: got {actual}; allowed: {allowed}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries (builds run in subprocesses), so they must pickle."""
        return _rebuild, (type(self), self.subject, self.actual, self.allowed, self.remedy)


def _rebuild(kind: type[ZturboError], subject: str, actual: str, allowed: str, remedy: str) -> ZturboError:
    return kind(subject, actual=actual, allowed=allowed, remedy=remedy)


class InvalidInput(ZturboError, ValueError):
    """What the caller passed is wrong."""


class RequestInvalid(InvalidInput):
    """A field of a Request has a value that is not allowed."""


class ProfileInvalid(InvalidInput):
    """A profile's text cannot be read or asks for what the bundle cannot do."""


class OptionInvalid(InvalidInput):
    """An option of a command, of load(), export() or build() has a value that is not allowed."""


class LoraInvalid(InvalidInput):
    """A LoRA file is damaged, is of a kind that is not supported, or was made for another model."""


class ConfigInvalid(InvalidInput):
    """A config file cannot be read, or a key in it is unknown or has a value that is not allowed."""


class SourceError(ZturboError):
    """The model to export is missing, unreadable or not supported."""


class SchedulerUnsupported(SourceError):
    """A diffusers scheduler that cannot be written as a table of coefficients."""


class ExportMismatch(ZturboError):
    """An exported graph does not compute what its module computes."""


class BundleError(ZturboError):
    """A bundle cannot be used."""


class BundleMissing(BundleError):
    """There is no bundle where one was expected."""


class BundleVersion(BundleError):
    """The bundle was written for another version of the schema."""


class BundleInvalid(BundleError):
    """bundle.json is not what export wrote."""


class BundleDamaged(BundleError):
    """A file of the bundle is not the one that export wrote."""


class PlanError(ZturboError):
    """A plan cannot be used."""


class PlanMissing(PlanError):
    """There is no plan where one was expected."""


class PlanInvalid(PlanError):
    """plan.json is not what build wrote."""


class PlanDamaged(PlanError):
    """The plan's bytes are not those that plan.json describes."""


class PlanMismatch(PlanError):
    """The plan was made for another bundle, graph, profile, precision, TensorRT or GPU."""


class ShapeOutsideProfile(ZturboError):
    """The shapes of a request fit no profile that was built."""


class BuildFailed(ZturboError):
    """A plan could not be built."""


class BackendUnavailable(ZturboError):
    """A backend cannot run on this machine or with this bundle."""


class ExecutionFailed(ZturboError):
    """A vendor's runtime refused or failed a call."""


class ExtraMissing(ZturboError):
    """A Python module is not installed; the message names the extra that has it."""


class OutputError(ZturboError):
    """A result cannot be written where it was asked for."""


def shown(value: object) -> str:
    """A value as a message shows it: short, and also where Python refuses to write a long integer."""
    try:
        text = repr(value)
    except ValueError:
        inner = "" if isinstance(value, int) else "with an integer "
        text = f"{type(value).__name__} {inner}of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
