"""The timing cache: what builds for one TensorRT, GPU and CUDA timed, kept in a file that they share.

Whatever is wrong with it is a miss and never a failure: a cache that is refused, damaged, locked for long or not
writable is done without. Does not know what a build is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

LOCK_S = 20.0
"""A merge takes a fraction of a second; who waits longer than this goes without."""
_REFUSALS = (OSError, filelock.Timeout, TypeError, ValueError, RuntimeError, AttributeError)
"""What files, locks and TensorRT's bindings raise."""


class TimingCache:
    """A file of timings; path None for none. Builds in other processes may use the same file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """What is in the file; b"" where there is none yet; None where no cache can be used."""
        if self._path is None:
            return None
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError:
            return None

    def attach(self, config: Any, raw: bytes) -> bool:
        """Give a builder config the timings; False where TensorRT refuses them, and the config has new ones then."""
        for content in dict.fromkeys((raw, b"")):
            with contextlib.suppress(*_REFUSALS):
                cache = config.create_timing_cache(content)
                if cache is not None and config.set_timing_cache(cache, False):
                    return content == raw
        return False

    def merge(self, config: Any) -> None:
        """Add what a finished build timed to the file; what other builds added since it was read stays."""
        if self._path is None:
            return
        with contextlib.suppress(*_REFUSALS), self._locked():
            before, own = self.read(), config.get_timing_cache()
            if before is None or own is None:
                return
            if before:
                with contextlib.suppress(*_REFUSALS):  # a damaged file is replaced
                    own.combine(config.create_timing_cache(before), False)
            after = bytes(own.serialize())
            if after and after != before:
                self._write(after)

    def forget(self) -> None:
        """Remove the file, which made a build fail (8.6.0: "Myelin error from unknown graph"); the next begins anew."""
        if self._path is not None:
            with contextlib.suppress(*_REFUSALS), self._locked():
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock. Raises filelock.Timeout or OSError."""
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=LOCK_S):
            yield

    def _write(self, content: bytes) -> None:
        """Replace the file at once. Its temporary name is one, so that a killed build leaves one file at most."""
        assert self._path is not None
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
