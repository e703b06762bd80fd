"""Quiet threads for tests that run torch; the tiny model and its bundle are those of tests/conftest.py."""

from __future__ import annotations

import torch

from tests.export.small_models import small

torch.set_num_threads(1)  # tiny tensors; threads that wait for each other cost more than they bring

__all__ = ["small"]
