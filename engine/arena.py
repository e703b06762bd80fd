"""The scratch of engines that run one after another on one device: one block, as large as the largest of them needs.

Knows neither engines nor captures; who put its address somewhere is told when it moves, or asks for the generation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from engine.device import Device
from engine.errors import ExecutionFailed

_LOGGER = logging.getLogger("zturbo.arena")
Lend = Callable[[int, int], None]
"""Told the address and the size in bytes."""


class Arena:
    """One block of device memory.

    size_bytes: what is reserved, or will be once something is needed. generation: raised when the block moves; what was
    captured with an earlier one writes to memory that is no longer ours.
    """

    def __init__(self, device: Device, size_bytes: int = 0) -> None:
        """Reserve nothing yet. size_bytes: what is known to be needed later, so that the block need not move then."""
        self._device = device
        self.address, self.size_bytes, self.generation = 0, size_bytes, 0
        self._users: list[Lend] = []

    def join(self, size_bytes: int, lend: Lend) -> None:
        """Have at least size_bytes, and call lend with every address that follows. Raises ExecutionFailed."""
        if not self.address:
            self._begin(size_bytes)
        elif size_bytes > self.size_bytes:
            self._grow(size_bytes)
        self._users.append(lend)

    def leave(self, lend: Lend) -> None:
        """Tell no more; the block keeps its size."""
        self._users = [user for user in self._users if user != lend]

    def close(self) -> None:
        """Free the block; nothing may run that uses it."""
        address, self.address = self.address, 0
        self._device.release(address)

    def _begin(self, size_bytes: int) -> None:
        """What is known to be needed later, or what is needed now where memory does not suffice for that."""
        known = max(size_bytes, self.size_bytes)
        try:
            self.address = self._device.reserve(known)
        except ExecutionFailed:
            if known == size_bytes:
                raise
            self.address, known = self._device.reserve(size_bytes), size_bytes
        self.size_bytes = known

    def _grow(self, size_bytes: int) -> None:
        """Move to a larger block. Where there is no memory for it everything stays as it was."""
        self._device.synchronize()
        old, self.address = self.address, self._device.reserve(size_bytes)
        _LOGGER.info("the scratch grew from %d to %d bytes; captures are made anew", self.size_bytes, size_bytes)
        self.size_bytes, self.generation = size_bytes, self.generation + 1
        for lend in self._users:
            lend(self.address, size_bytes)
        self._device.release(old)
