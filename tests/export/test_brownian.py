"""DPMSolverSDE on a real Brownian path of torchsde: its table, fed with the increments of it, ends where it does."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from export.probe import prepared, snapshot
from tests.export.test_solver import model, noises, relative, row_loop, subject


class Recorded:
    """A sampler of diffusers' that remembers what the path did over each piece that was asked for first."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.pieces = sampler, list[Tensor]()
        self._first: tuple[float, float, Tensor] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        drawn: Tensor = self.sampler(sigma, sigma_next)
        begin, end = float(sigma), float(sigma_next)
        if self._first is None or self._first[0] != begin:
            self._first = begin, end, drawn
            self.pieces.append(drawn)
        else:
            _, middle, first = self._first
            rest = drawn * (begin - end) ** 0.5 - first * (begin - middle) ** 0.5
            self.pieces.append(rest / (middle - end) ** 0.5)
            self._first = None
        return drawn


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # torchsde's, of a bound rounded to float32
@pytest.mark.parametrize("steps", [4, 12])
def test_follows_a_real_path(steps: int) -> None:
    pytest.importorskip("torchsde")
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    one = subject("dpmpp_sde_karras", "epsilon")
    ready, rows, start = snapshot(prepared(one._scheduler, steps)), one.table(steps), noises(1)[0]
    sigmas = ready.sigmas[ready.sigmas > 0]
    path = Recorded(BrownianTreeNoiseSampler(start, sigmas.min(), sigmas.max(), seed=3))
    ready.noise_sampler = path
    ready.set_begin_index(0)
    x = start * ready.init_noise_sigma
    for t in ready.timesteps:
        x = ready.step(model(ready.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    assert relative(row_loop(rows, [start, *path.pieces, *noises(1)[-1:]]), x) <= 1e-5
    assert relative(row_loop(rows, noises(1)), x) > 1e-2  # another path ends elsewhere
