"""zturbo's public API: everything in `__all__`, and nothing else in this repository, is documented and kept stable.

Names are imported when they are first used, so that `zturbo --help` and `import zturbo` stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.errors import ZturboError as ZturboError
    from runtime.images import Result as Result
    from runtime.pipeline import Pipeline as Pipeline
    from runtime.request import Request as Request
    from zturbo.config import Config as Config
    from zturbo.config import load_config as load_config
    from zturbo.generator import Generator as Generator
    from zturbo.older_config import ConfigWarning as ConfigWarning

_HOMES = {
    "Config": "zturbo.config",
    "ConfigWarning": "zturbo.older_config",
    "Generator": "zturbo.generator",
    "Pipeline": "runtime.pipeline",
    "Request": "runtime.request",
    "Result": "runtime.images",
    "ZturboError": "engine.errors",
    "load_config": "zturbo.config",
}

__all__ = ["Config", "ConfigWarning", "Generator", "Pipeline", "Request", "Result", "ZturboError", "load_config"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'zturbo' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
